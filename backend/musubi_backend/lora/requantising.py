"""fp8 weights made again after a change, scaled as they were: by one number, by row, or by equal parts of a row."""

from __future__ import annotations

import torch
from torch import Tensor

_SMALLEST_SCALE = 1e-8


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
    fitted = (grouped.abs().amax(-1, keepdim=True) / largest).clamp(min=_SMALLEST_SCALE).to(scale.dtype)
    stored = (grouped / fitted.float()).clamp(-largest, largest).to(dtype)
    return stored.reshape(dense.shape), fitted.reshape(scale.shape)
