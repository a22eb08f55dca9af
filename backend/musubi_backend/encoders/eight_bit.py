"""Text encoders with their large matrices held as 8-bit floats: half the memory of 16 bits, the same arithmetic after a cast."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn


def compress(linear_names: set[str], dtype: torch.dtype) -> _Compress:
    """What `weights.loader.load_into` does to each tensor: the weights of `linear_names` become float8, others `dtype`."""
    return _Compress(linear_names, dtype)


class _Compress:
    def __init__(self, linear_names: set[str], dtype: torch.dtype) -> None:
        self.linear_names, self.dtype = linear_names, dtype

    def __call__(self, name: str, tensor: Tensor) -> Tensor:
        import torch

        if name in self.linear_names:
            return tensor.to(torch.float8_e4m3fn)
        return tensor.to(self.dtype) if tensor.is_floating_point() else tensor


def linear_weights(model: nn.Module) -> set[str]:
    """Names of the weights of all linear layers."""
    from torch import nn

    return {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.Linear)}


def compute_from_eight_bits(model: nn.Module) -> None:
    """Let every linear layer cast its 8-bit weight to its input's dtype, one layer at a time."""
    from torch import nn

    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.forward = partial(_linear, module)  # type: ignore[method-assign]


def _linear(module: nn.Linear, x: Tensor) -> Tensor:
    import torch.nn.functional as F

    return F.linear(x, module.weight.to(x.dtype), module.bias)
