"""8-bit weights times their scales, and back: by one number, by row, or by equal parts of a row."""

from __future__ import annotations

import torch
from torch import Tensor

EIGHT_BIT_DTYPES = (torch.float8_e4m3fn, torch.float8_e5m2)
SMALLEST_SCALE = 1e-8


def dequantised(weight: Tensor, scale: Tensor | None, dtype: torch.dtype) -> Tensor:
    """fp8 (or other) weight times its scale, in `dtype`. scale: one number, [out, 1], or [out, blocks, 1] for equal parts of a row."""
    dense = weight.to(dtype, copy=True)
    if scale is None:
        return dense
    if scale.ndim == 3 and scale.numel() > 1:
        dense.unflatten(1, (scale.shape[1], -1)).mul_(scale)
    else:
        dense.mul_(scale if scale.numel() > 1 else scale.reshape(()))
    return dense


def requantised(dense: Tensor, scale: Tensor | None, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """float32 weight [out, in] -> (fp8 weight, scale of the shape and dtype of `scale`), with weight ~ fp8 * scale.

    Without a scale the weight is cast; what lies beyond the dtype's range becomes its largest number.
    """
    largest = torch.finfo(dtype).max
    if scale is None:
        return dense.clamp(-largest, largest).to(dtype), None
    grouped = dense.unflatten(1, (scale.shape[1], -1)) if scale.ndim == 3 else dense
    if scale.numel() == 1:
        grouped = dense.reshape(1, -1)
    fitted = (grouped.abs().amax(-1, keepdim=True) / largest).clamp(min=SMALLEST_SCALE).to(scale.dtype)
    stored = (grouped / fitted.float()).clamp(-largest, largest).to(dtype)
    return stored.reshape(dense.shape), fitted.reshape(scale.shape)
