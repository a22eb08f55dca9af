"""Writes the little TOML a dataset file needs; every string is quoted so that quotes, backslashes and any script survive."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any


def value(item: Any) -> str:
    """One TOML value. JSON's escapes are TOML's too, except that TOML wants DEL escaped."""
    if isinstance(item, bool):
        return "true" if item else "false"
    if isinstance(item, (int, float)):
        return repr(item)
    if isinstance(item, str):
        return json.dumps(item, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(item, Sequence):
        return "[" + ", ".join(value(entry) for entry in item) + "]"
    raise TypeError(f"{item!r} has no place in a dataset file")


def dataset_file(datasets: Sequence[Mapping[str, Any]]) -> str:
    """The text of a dataset file with one `[[datasets]]` table each."""
    blocks = ["[[datasets]]\n" + "".join(f"{key} = {value(item)}\n" for key, item in entry.items()) for entry in datasets]
    return "\n".join(blocks)
