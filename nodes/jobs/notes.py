"""What is noted in a job's folder, read again: somebody may have edited it, or a disk damaged it. A value of another kind than is written
there counts as absent, so that whoever reads notes deals with what is missing only."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

Kind = Callable[[Any], bool]


def is_run(text: Any) -> bool:
    """Whether a run's folder may be called so: one part of a path, not hidden."""
    return isinstance(text, str) and 0 < len(text) <= 255 and text[0] != "." and not any(mark in text for mark in "/\\\0:")


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) for one in value)


def _switch(value: Any) -> bool:
    return isinstance(value, bool)


def _whole(value: Any) -> bool:
    return type(value) is int and abs(value) < 2**63


def _number(value: Any) -> bool:
    return type(value) is float or _whole(value)


def _table(value: Any) -> bool:
    return isinstance(value, dict)


_STATUS: dict[str, Kind] = {
    **dict.fromkeys(("state", "outcome", "text", "error", "phase", "engine", "boot"), _text),
    **dict.fromkeys(("step", "total", "pid", "returncode"), _whole),
    **dict.fromkeys(("time", "started", "created"), _number),
    "gpus": _texts,
    "runner": _table,
}
_TASK: dict[str, Kind] = {
    **dict.fromkeys(("tool", "mixed_precision"), _text),
    **dict.fromkeys(("foreign", "gpu", "launch", "background"), _switch),
    **dict.fromkeys(("processes", "attempt"), _whole),
    **dict.fromkeys(("arguments", "gpus"), _texts),
    **dict.fromkeys(("machines", "training"), _table),
}
_TRAINING: dict[str, Kind] = {
    **dict.fromkeys(("name", "loras_dir", "converted"), _text),
    **dict.fromkeys(("endings", "resume"), _texts),
    **dict.fromkeys(("values", "results", "lengths"), _table),
    "run": is_run,
}


def of_status(values: Mapping[str, Any]) -> dict[str, Any]:
    """What of a `status.json` is as a runner writes it."""
    return _fitting(values, _STATUS)


def of_task(values: Mapping[str, Any]) -> dict[str, Any]:
    """What of a `task.json` is as `task.Task` is noted."""
    found = _fitting(values, _TASK)
    return {**found, "training": _fitting(found["training"], _TRAINING)} if "training" in found else found


def _fitting(values: Mapping[str, Any], kinds: Mapping[str, Kind]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name not in kinds or kinds[name](value)}
