"""Graphs that checkpoints are sampled with, kept so that they need not be open: `<home>/sampling_workflows/<name>.json`."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

from ...backend.musubi_backend.atomic import write_text
from ...backend.musubi_backend.documents import read_json
from ...backend.musubi_backend.errors import UserError
from ..answers import NotThere
from ..jobs import guard

FOLDER = "sampling_workflows"
LARGEST = 1 << 24
"""Bytes of one."""


def names(home: Path) -> list[str]:
    """Of all that are kept, the newest first."""
    found = []
    for path in (home / FOLDER).glob("*.json"):
        with contextlib.suppress(FileNotFoundError):  # removed meanwhile
            found.append((path.stat().st_mtime_ns, path.stem))
    return [name for _, name in sorted(found, reverse=True)]


def read(home: Path, name: str) -> dict[str, Any]:
    """The prompt (ComfyUI's API format) and the workflow of one."""
    try:
        found = read_json(_path(home, name), dict, paths=True)
        return {"prompt": _prompt(found.get("prompt")), "workflow": found.get("workflow")}
    except (OSError, ValueError):
        raise NotThere(f"there is no workflow {name[:100]!r} (any more)") from None


def keep(home: Path, name: str, prompt: Any, workflow: Any) -> list[str]:
    """Keep one, in place of another of this name; without a prompt, forget it. Returns the names of all."""
    path = _path(home, name)
    if prompt is None:
        path.unlink(missing_ok=True)
        return names(home)
    if workflow is not None and not isinstance(workflow, dict):
        raise UserError("workflow is an object, or null")
    text = json.dumps({"prompt": _prompt(prompt), "workflow": workflow})
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text)
    return names(home)


def _path(home: Path, name: str) -> Path:
    return home / FOLDER / f"{guard.plain_name(name, 'the name of the workflow')}.json"


def _prompt(value: Any) -> dict[str, Any]:
    if (
        isinstance(value, dict)
        and value
        and all(isinstance(one, dict) and isinstance(one.get("class_type"), str) for one in value.values())
    ):
        return value
    raise UserError("prompt is a graph in ComfyUI's API format")
