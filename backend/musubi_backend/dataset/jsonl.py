"""JSONL datasets: one JSON object per line with the path of a medium, its caption and its control media.

images   {"image_path": "...", "caption": "...", "control_path": "..."} or control_path_0, control_path_1, ...;
           with `multiple_target` also image_path_1, ...; the first image may be called image_path_0
clips      {"video_path": "...", "caption": "...", "control_path": "..."}; a path is a file or a folder of frames
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..documents import parse_json
from ..texts import read_text
from .media import spelled
from .problems import Problem


@dataclass(frozen=True)
class Record:
    """One usable line."""

    path: Path
    caption: str
    targets: tuple[Path, ...]
    controls: tuple[Path, ...]


def read_records(file: Path, kind: str, *, multiple_target: bool = False) -> tuple[list[Record], list[Problem]]:
    """The lines of `file` in their order. `kind` is "image" or "video". Blank lines are skipped; bad lines are Problems.

    OSError and ValueError when the file itself cannot be read.
    """
    records, problems = [], []
    # not splitlines(): JSON text may hold Unicode's own line separators
    for number, line in enumerate(read_text(file).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            records.append(_record(line, kind, multiple_target))
        except ValueError as error:
            problems.append(Problem(file, f"line {number}: {error}"))
    return records, problems


def _record(line: str, kind: str, multiple_target: bool) -> Record:
    try:
        content = parse_json(line, object)
    except json.JSONDecodeError as error:
        raise ValueError(f"not valid JSON: {error.msg} at column {error.colno}") from None
    if not isinstance(content, dict):
        raise ValueError("not a JSON object in braces")
    first = f"{kind}_path" if f"{kind}_path" in content or kind == "video" else f"{kind}_path_0"
    path, caption = _text(content, first), _text(content, "caption")
    targets: list[Path] = []
    while multiple_target and f"{kind}_path_{len(targets) + 1}" in content:
        targets.append(_medium(_text(content, f"{kind}_path_{len(targets) + 1}")))
    controls = tuple(_medium(_text(content, key)) for key in _control_keys(content))
    return Record(_medium(path), caption, tuple(targets), controls)


def _medium(path: str) -> Path:
    found = spelled(Path(path))
    if not found.exists():
        raise ValueError(f"{path} does not exist")
    return found


def _control_keys(content: dict[str, Any]) -> list[str]:
    """`control_path` and the numbered keys in the order of their numbers; a bare `control_path` takes the place of number 0."""
    keys = [key for key in content if key.startswith("control_path_") and not (key == "control_path_0" and "control_path" in content)]
    wrong = [key for key in keys if not key.rsplit("_", 1)[-1].isdigit()]
    if wrong:
        raise ValueError(f"{wrong[0]} must end in a number, like control_path_0")
    keys.sort(key=lambda key: int(key.rsplit("_", 1)[-1]))
    return (["control_path"] if content.get("control_path") else []) + keys


def _text(content: dict[str, Any], key: str) -> str:
    value = content.get(key)
    if not isinstance(value, str) or (not value and key != "caption"):
        raise ValueError(f"{key} is missing" if value is None else f"{key} must be text, not {value!r}")
    return value
