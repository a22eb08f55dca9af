"""Tensors of equally many numbers as the rows of one matrix, so that one kernel does what would be one for each of them: a LoRA is hundreds
of small tensors, of few sizes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .rounding import exact

State = dict[str, Any]


def in_place(tensors: Sequence[Tensor]) -> bool:
    """Whether tensors are a matrix to compute with as they are: a single one, in fp32 at least."""
    first = tensors[0]
    return len(tensors) == 1 and first.is_contiguous() and first.dtype == exact(first.dtype)


def rows(tensors: Sequence[Tensor], room: Tensor | None = None) -> Tensor:
    """[tensors, numbers], to compute with, in fp32 at least: of a single tensor its own memory where that can be, else a copy, in `room`
    where that is given."""
    if in_place(tensors):
        return tensors[0].view(1, -1)
    if room is None:
        room = tensors[0].new_empty((len(tensors), tensors[0].numel()), dtype=exact(tensors[0].dtype))
    return torch.stack([tensor.reshape(-1) for tensor in tensors], out=room)


def zeros(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Those of which every number is 0. Waits for each device once."""
    found: dict[torch.device, list[Tensor]] = {}
    for tensor in tensors:
        found.setdefault(tensor.device, []).append(tensor)
    return [
        tensor
        for alike in found.values()
        for tensor, filled in zip(alike, torch.stack([tensor.detach().any() for tensor in alike]).tolist(), strict=True)
        if not filled
    ]


def kept(states: Sequence[State], name: str) -> Tensor:
    """What states keep under a name: [tensors, numbers]. They keep views of its rows from then on, so that it is copied once only."""
    held: list[Tensor] = [state[name] for state in states]
    length, shared = held[0].numel(), held[0]._base
    if shared is not None and shared.shape == (len(held), length) and shared.is_contiguous() and _lie_in(shared, held):
        return shared
    matrix = torch.stack([one.reshape(-1) for one in held])
    keep(states, name, matrix, [one.shape for one in held])
    return matrix


def _lie_in(matrix: Tensor, held: Sequence[Tensor]) -> bool:
    """Whether the tensors are views of its rows, in their order."""
    length = matrix.shape[1]
    return all(one._base is matrix and one.storage_offset() == index * length for index, one in enumerate(held))


def keep(states: Sequence[State], name: str, matrix: Tensor, shapes: Sequence[torch.Size] = ()) -> None:
    """Let states have the rows of a matrix under a name, in shapes of their own where they are given."""
    for index, (state, row) in enumerate(zip(states, matrix, strict=True)):
        state[name] = row.view(shapes[index]) if shapes else row


def kept_like(states: Sequence[State], name: str, like: Sequence[Tensor]) -> Tensor:
    """As `kept`, in fp32 at least; zeros where a state has none yet, in the shapes of `like`."""
    for state, tensor in zip(states, like, strict=True):
        if name not in state:
            state[name] = tensor.new_zeros(tensor.shape, dtype=exact(tensor.dtype))
    return kept(states, name)


def kept_numbers(states: Sequence[State], name: str, like: Tensor, start: float = 0.0) -> Tensor:
    """One number for each tensor: [tensors, 1], as `kept`; `start` where a state has none yet. like: where and in what dtype."""
    for state in states:
        if name not in state:
            state[name] = like.new_full((), start, dtype=exact(like.dtype))
    return kept(states, name)
