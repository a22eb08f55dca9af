"""Which sizes and lengths the models take."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from .spec import Problem


def size_problems(constants: dict[str, Any]) -> Iterator[Problem]:
    for side in ("width", "height"):
        value = constants.get(side, 16)
        if value % 16:
            yield Problem(side, f"{side}: {value} is not a multiple of 16; nearest is {round(value / 16) * 16}")


def length_problems(constants: dict[str, Any], stride: int) -> Iterator[Problem]:
    length = constants.get("video_length", 1)
    if length and (length - 1) % stride:
        nearest = round((length - 1) / stride) * stride + 1
        yield Problem("video_length", f"video_length: {length} is not {stride}n+1; nearest is {nearest}")
