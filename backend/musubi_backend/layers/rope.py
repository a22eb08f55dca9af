"""Rotary position embedding for video tokens (arXiv 2104.09864): each head's channels are split over frame, height and width.

Tables are computed in float64 and cast. Backward is the inverse rotation, so no activation is kept for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

Tables = tuple[Tensor, Tensor]
Positions = tuple[tuple[float, ...], tuple[float, ...], tuple[float, ...]]


def even_widths(head_dim: int) -> tuple[int, int, int]:
    """Channels that turn with frames, height and width where the sides get a third each and frames what is left
    (github.com/Wan-Video/Wan2.1, wan/modules/model.py)."""
    side = 2 * (head_dim // 6)
    return head_dim - 2 * side, side, side


@lru_cache(maxsize=16)  # the tables of a long video are tens of MB
@torch.inference_mode(False)  # made while sampling, they must still serve training
def rope_tables(
    positions: Positions,
    widths: tuple[int, int, int],
    device: torch.device,
    dtype: torch.dtype,
    theta: float = 10000.0,
    pool: int = 1,
) -> Tables:
    """(cos, sin), each [F*H*W, 1, head_dim], for the tokens of a grid in frame-major order.

    Both values of a channel pair share their angle; sin is negative on the first of them, as `_rotate` wants it.

    positions: the position numbers along frames, height and width. widths: how many of the head's channels turn with each.
    pool: a token that stands for a cube of pool³ positions gets the mean of their tables; incomplete cubes are filled up with
    the last position. Kept per grid, since a bucket comes back all the time.
    """
    sizes = [len(p) for p in positions]
    angles = []
    for axis, (numbers, width) in enumerate(zip(positions, widths, strict=True)):
        frequencies = theta ** -(torch.arange(0, width, 2, dtype=torch.float64) / width)
        along = torch.outer(torch.tensor(numbers, dtype=torch.float64), frequencies)
        shape = [1, 1, 1, -1]
        shape[axis] = sizes[axis]
        angles.append(along.view(shape).expand(*sizes, -1))
    angle = torch.cat(angles, dim=-1)
    cos, sin = (_pooled(table, pool).flatten(0, 2).unsqueeze(1) for table in (angle.cos(), angle.sin()))
    cos = cos.repeat_interleave(2, dim=-1)
    sin = torch.stack([-sin, sin], dim=-1).flatten(-2)
    return cos.to(device, dtype), sin.to(device, dtype)


def _pooled(table: Tensor, pool: int) -> Tensor:
    """[F, H, W, D] -> the means over cubes of pool³ entries."""
    if pool == 1:
        return table
    channels_first = table.permute(3, 0, 1, 2)
    padding = [amount for size in reversed(table.shape[:3]) for amount in (0, -size % pool)]
    padded = F.pad(channels_first[None], padding, mode="replicate")
    return F.avg_pool3d(padded, pool)[0].permute(1, 2, 3, 0)


def grid_positions(frames: int, height: int, width: int, frame_indices: Sequence[int] | None = None) -> Positions:
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
        return _rotate(grad, cos, sin, -1), None, None


class _RotationBeside(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor, beside: Tensor) -> Tensor:
        ctx.tables = (cos, sin)
        length = x.shape[1]
        joined = x.new_empty(x.shape[0], length + beside.shape[1], *x.shape[2:])
        _rotate(x, cos, sin, out=joined[:, :length])
        joined[:, length:] = beside
        return joined

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, Tensor]:
        cos, sin = ctx.tables
        length = cos.shape[1]
        return _rotate(grad[:, :length], cos, sin, -1), None, None, grad[:, length:]


def _rotate(x: Tensor, cos: Tensor, sin: Tensor, sense: int = 1, out: Tensor | None = None) -> Tensor:
    swapped = x.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)
    return torch.mul(x, cos, out=out).addcmul_(swapped, sin, value=sense)


def apply_rope(x: Tensor, tables: Tables) -> Tensor:
    """Rotate neighbouring channel pairs of x [B, S, heads, head_dim] by `rope_tables`, which are in x's dtype."""
    if torch.compiler.is_compiling():  # which finds the same backward itself; PyTorch 2.11's lost the gradient of the function
        return _rotate(x, *tables)
    rotated: Tensor = _Rotation.apply(x, *tables)  # type: ignore[no-untyped-call]
    return rotated


def apply_rope_beside(x: Tensor, tables: Tables, beside: Tensor) -> Tensor:
    """`apply_rope` of x [B, S, heads, head_dim], followed by `beside` [B, L, heads, head_dim] as it is: [B, S + L, heads, head_dim]."""
    if torch.compiler.is_compiling():  # which writes it there itself
        return torch.cat([apply_rope(x, tables), beside], dim=1)
    joined: Tensor = _RotationBeside.apply(x, *tables, beside)  # type: ignore[no-untyped-call]
    return joined
