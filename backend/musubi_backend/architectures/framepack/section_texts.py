"""Prompts and images per section: `0:a cat;;;-1:a dog`, musubi-tuner's notation.

Without `;;;` the whole text is for all sections. Numbers count sections in time from 0, or from the last one backwards (-1); `0-2` and
`-3--1` are ranges. A part without a number is for section 0, which stands in for sections that have none of their own.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TypeVar

SEPARATOR = ";;;"
_RANGE = re.compile(r"^\s*(-?\d+)\s*(?:-\s*(-?\d+)\s*)?:")

T = TypeVar("T")


def parse_sections(text: str | None) -> dict[int, str]:
    """Section number -> text; 0 is always among them, unless `text` is empty or None."""
    if not text:
        return {}
    if SEPARATOR not in text:
        return {0: text}
    found: dict[int, str] = {}
    for part in text.split(SEPARATOR):
        match = _RANGE.match(part)
        first = int(match[1]) if match else 0
        last = int(match[2]) if match and match[2] else first
        value = (part[match.end() :] if match else part).strip()
        if value:
            found.update(dict.fromkeys(range(first, last + 1), value))
    if found and 0 not in found:
        forward = [number for number in found if number > 0]
        found[0] = found[min(forward or found)]
    return found


def chosen(values: Mapping[int, T], number: int, sections: int) -> int:
    """The key of `values` that holds for section `number` of `sections`: its place from the end, its place, or 0."""
    from_last = number - sections
    return from_last if from_last in values else number if number in values else 0
