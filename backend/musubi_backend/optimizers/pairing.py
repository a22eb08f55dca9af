"""Which trained weights belong together: by the names of a LoRA's or LoKr's tensors, else by their shapes and values."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

DOWN, UP, W1, W2, OTHER = "down", "up", "w1", "w2", "other"
_ROLES = (
    (re.compile(r"[._](lora_down|lora_a)(\.|_|$)", re.I), DOWN),
    (re.compile(r"[._](lora_up|lora_b)(\.|_|$)", re.I), UP),
    (re.compile(r"[._](lokr_w1)(_[ab])?(\.|$)", re.I), W1),
    (re.compile(r"[._](lokr_w2|lokr_t2)(_[ab])?(\.|$)", re.I), W2),
)
_PARTNERS = {DOWN: UP, UP: DOWN, W1: W2, W2: W1}
MOST_UNNAMED = 64
_SAMPLE = 1024


@dataclass(frozen=True)
class Pair:
    """Positions of two weights in their list, how compatible they are (1: by name), and how they go together."""

    first: int
    second: int
    compatibility: float
    kind: str


def names_of(group: Mapping[str, Any]) -> list[str]:
    """The names of a group's weights; empty where it has none."""
    names = group.get("param_names") or group.get("named") or []
    return list(names) if len(names) == len(group["params"]) else []


def role(name: str) -> tuple[str, str]:
    """The layer of a tensor's name and its part in it: DOWN, UP, W1, W2 or OTHER."""
    for pattern, part in _ROLES:
        found = pattern.search(name)
        if found:
            return name[: found.start()], part
    return name, OTHER


def by_name(names: Sequence[str]) -> list[Pair]:
    """The pairs of matrices whose product a layer adds. Of a LoKr's factored matrices (`lokr_w1_a`, `_b`), the first of each."""
    places: dict[tuple[str, str], int] = {}
    for index, name in enumerate(names):
        places.setdefault(role(name), index)
    return [
        Pair(index, places[layer, _PARTNERS[part]], 1.0, f"{part} and {_PARTNERS[part]}")
        for (layer, part), index in places.items()
        if part in (DOWN, W1) and (layer, _PARTNERS[part]) in places
    ]


def by_shape(weights: Sequence[Tensor], threshold: float) -> list[Pair]:
    """Pairs of matrices without names: 0.7 for shapes that can be multiplied, 0.3 for the correlation of their first values. Each weight
    has one partner, the best above `threshold` first. At most `MOST_UNNAMED` are looked at, and waited for once."""
    matrices = [index for index, weight in enumerate(weights) if weight.ndim == 2][:MOST_UNNAMED]
    if len(matrices) < 2:
        return []
    length = min(_SAMPLE, *(weights[index].numel() for index in matrices))
    values = torch.stack([weights[index].detach().reshape(-1)[:length].float() for index in matrices])
    values = values - values.mean(1, keepdim=True)
    values = values / values.norm(dim=1, keepdim=True).clamp_min(1e-30)
    likeness = (values @ values.mT).abs().tolist()
    found = []
    for row, first in enumerate(matrices):
        for column, second in enumerate(matrices[:row]):
            shape, kind = _fit(weights[second].shape, weights[first].shape)
            compatibility = 0.7 * shape + 0.3 * min(likeness[row][column], 1.0)
            if shape and compatibility > threshold:
                found.append(Pair(second, first, compatibility, kind))
    return _each_once(found)


def discover(names: Sequence[str] | None, weights: Sequence[Tensor], threshold: float) -> list[Pair]:
    """By name what has one, then by shape what is left."""
    named = by_name(names) if names else []
    if any(role(name)[1] != OTHER for name in names or ()):
        return named  # a network: what has no partner in it has none
    return named + by_shape(weights, threshold)


def _fit(one: torch.Size, other: torch.Size) -> tuple[float, str]:
    """How many of the ways to multiply two matrices are possible, and the first of them."""
    ways = {
        "product": one[1] == other[0],
        "product, the other way round": one[0] == other[1],
        "product with the transposed": one[1] == other[1],
        "product of the transposed": one[0] == other[0],
    }
    possible = [name for name, fits in ways.items() if fits]
    return len(possible) / len(ways), possible[0] if possible else ""


def _each_once(pairs: list[Pair]) -> list[Pair]:
    taken: set[int] = set()
    kept = []
    for pair in sorted(pairs, key=lambda pair: (-pair.compatibility, pair.first, pair.second)):
        if not {pair.first, pair.second} & taken:
            taken |= {pair.first, pair.second}
            kept.append(pair)
    return kept
