"""Tiles of an image that are decoded one after the other: each takes as much as its size says, so the work of one is counted, and of the
seams between them one line."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Size, Tensor, nn

from .live_bytes import LiveBytes

_SIDES = 2  # of a tile, the last of its dimensions


@contextlib.contextmanager
def counted_once(module: nn.Module, count: LiveBytes) -> Iterator[None]:
    """While it is entered. module: of one tensor [..., H, W] and without a state, which makes both sides larger by a whole number."""
    whole: Any = module.forward
    known: dict[Size, tuple[Size, torch.dtype, Size, int]] = {}  # by the first dimensions: result, input, bytes at the worst moment

    def forward(x: Tensor) -> Tensor:
        made, dtype, size, taken = known.get(x.shape[:-_SIDES], (x.shape, x.dtype, x.shape, 0))
        if taken and all(side <= other for side, other in zip(x.shape, size, strict=True)):
            count.peak = max(count.peak, count.live + taken * x.numel() // size.numel())
            sides = [side * large // small for side, large, small in zip(x.shape[-_SIDES:], made[-_SIDES:], size[-_SIDES:], strict=True)]
            return torch.empty([*made[:-_SIDES], *sides], dtype=dtype, device=x.device)
        there, before, count.peak = count.live, count.peak, count.live
        result: Tensor = whole(x)
        known[x.shape[:-_SIDES]] = result.shape, result.dtype, x.shape, count.peak - there
        count.peak = max(before, count.peak)
        return result

    patched: Any = module
    patched.forward = forward
    try:
        yield
    finally:
        patched.forward = whole


@contextlib.contextmanager
def seams_of_a_line(model: Any) -> Iterator[None]:
    """While it is entered, diffusers' blend_v and blend_h of a model work on the first line of a seam: each takes as much as another."""

    def line(whole: Any) -> Any:
        return lambda a, b, extent: whole(a, b, min(extent, 1))

    wholes = {name: getattr(model, name) for name in ("blend_v", "blend_h")}
    for name, whole in wholes.items():
        setattr(model, name, line(whole))
    try:
        yield
    finally:
        for name in wholes:
            delattr(model, name)
