"""Linear layers that hold their weight in 8 bits: half the memory of bfloat16, cast to the input's dtype where it is used."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FP8 = torch.float8_e4m3fn
_LARGEST = torch.finfo(FP8).max


class Fp8Linear(nn.Module):
    """y = x W^T * scale + bias, W [out, in] in fp8, scale [] or [out] in float32."""

    weight: Tensor
    scale: Tensor
    bias: Tensor | None

    def __init__(self, weight: Tensor, scale: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale)
        self.register_buffer("bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        y = F.linear(x, self.weight.to(x.dtype)) * self.scale.to(x.dtype)
        return y if self.bias is None else y + self.bias.to(x.dtype)


def quantised(weight: Tensor) -> tuple[Tensor, Tensor]:
    """(fp8 [out, in], float32 scale [out]) of a weight [out, in]: every row uses the whole range of fp8."""
    scale = weight.abs().amax(dim=1).float().clamp(min=1e-12) / _LARGEST
    return (weight.float() / scale[:, None]).clamp(-_LARGEST, _LARGEST).to(FP8), scale
