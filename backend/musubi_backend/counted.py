"""Numbers with what they count."""

from __future__ import annotations


def counted(number: int, one: str, several: str = "") -> str:
    """The number and the word for it: "1 clip", "3 clips". several: unless an s behind `one` makes it: "tensor is", "tensors are"."""
    return f"{number} {one if number == 1 else several or one + 's'}"
