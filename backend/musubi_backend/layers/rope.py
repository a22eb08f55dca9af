"""Rotary position embedding for video tokens (arXiv 2104.09864): each head's channels are split over frame, height and width.

Tables are computed in float64 and cast. Backward is the inverse rotation, so no activation is kept for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

Tables = tuple[Tensor, Tensor]


@lru_cache(maxsize=8)  # the tables of a long video are tens of MB
@torch.inference_mode(False)  # made while sampling, they must still serve training
def rope_tables(
    positions: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]],
    head_dim: int,
    device: torch.device,
    dtype: torch.dtype,
    theta: float = 10000.0,
) -> Tables:
    """(cos, sin), each [F*H*W, 1, head_dim], for the tokens of a grid in frame-major order.

    Both values of a channel pair share their angle; sin is negative on the first of them, as `_rotate` wants it.

    positions: the position numbers along frames, height and width. Height and width get head_dim // 6 pairs each, frames
    the rest (github.com/Wan-Video/Wan2.1, wan/modules/model.py). Kept per grid, since a bucket comes back all the time.
    """
    side = 2 * (head_dim // 6)
    widths = (head_dim - 2 * side, side, side)
    sizes = [len(p) for p in positions]
    angles = []
    for axis, (numbers, width) in enumerate(zip(positions, widths, strict=True)):
        frequencies = theta ** -(torch.arange(0, width, 2, dtype=torch.float64) / width)
        along = torch.outer(torch.tensor(numbers, dtype=torch.float64), frequencies)
        shape = [1, 1, 1, -1]
        shape[axis] = sizes[axis]
        angles.append(along.view(shape).expand(*sizes, -1))
    angle = torch.cat(angles, dim=-1).reshape(sizes[0] * sizes[1] * sizes[2], 1, -1)
    cos = angle.cos().repeat_interleave(2, dim=-1)
    sin = torch.stack([-angle.sin(), angle.sin()], dim=-1).flatten(-2)
    return cos.to(device, dtype), sin.to(device, dtype)


def grid_positions(frames: int, height: int, width: int, frame_indices: Sequence[int] | None = None) -> tuple[tuple[int, ...], ...]:
    """Positions of a token grid; `frame_indices` replaces 0..frames-1 where frames sit at chosen times."""
    along_time = tuple(range(frames)) if frame_indices is None else tuple(frame_indices)
    return along_time, tuple(range(height)), tuple(range(width))


class _Rotation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.tables = (cos, sin)
        return _rotate(x, cos, sin)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.tables
        return _rotate(grad, cos, -sin), None, None


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    swapped = x.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)
    return torch.addcmul(x * cos, swapped, sin)


def apply_rope(x: Tensor, tables: Tables) -> Tensor:
    """Rotate neighbouring channel pairs of x [B, S, heads, head_dim] by `rope_tables`, which are in x's dtype."""
    rotated: Tensor = _Rotation.apply(x, *tables)
    return rotated
