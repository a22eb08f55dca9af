"""What is installed already: `<home>/install.json`, one stamp per finished step.

A stamp is the hash of everything the step depends on. A step whose stamp still matches is skipped; a step that was interrupted has
none and runs again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .files import read_json, write_json


def stamp_of(*parts: str | Path) -> str:
    """A hash of texts and of the contents of files."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.read_bytes() if isinstance(part, Path) else part.encode()
        digest.update(len(data).to_bytes(8, "big") + data)
    return digest.hexdigest()[:16]


def _texts(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(text, str) for text in value.values())


def _text_or_none(value: Any) -> bool:
    return value is None or isinstance(value, str)


# What a file of ours says; anything else in it is damage.
_HOLDS: dict[str, Callable[[Any], bool]] = {
    "steps": _texts,
    "running": _text_or_none,
    "torch": lambda value: value in ("auto", "cpu", "cuda"),
    "torch_index": _text_or_none,
    "torch_is": lambda value: isinstance(value, dict) and isinstance(value.get("version"), str) and _text_or_none(value.get("cuda", 0)),
}


@dataclass
class State:
    path: Path
    data: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def load(cls, home: Path) -> State:
        path = home / "install.json"
        try:
            data = read_json(path)
        except ValueError:
            data = {}  # damaged: everything is checked and stamped anew
        return cls(path, {name: value for name, value in data.items() if name in _HOLDS and _HOLDS[name](value)})

    @property
    def interrupted(self) -> bool:
        return "running" in self.data

    def done(self, step: str, stamp: str) -> bool:
        return bool(self.data.get("steps", {}).get(step) == stamp) and self.data.get("running") != step

    def begin(self, step: str) -> None:
        self.data.setdefault("steps", {}).pop(step, None)
        self.data["running"] = step
        self._save()

    def finish(self, step: str, stamp: str) -> None:
        self.data.setdefault("steps", {})[step] = stamp
        self.data.pop("running", None)
        self._save()

    def finished(self) -> tuple[str, ...]:
        return tuple(self.data.get("steps", {}))

    def forget(self, *steps: str) -> None:
        """These steps have to be done again; without names, nothing is installed any more."""
        if steps:
            self.data["steps"] = {name: stamp for name, stamp in self.data.get("steps", {}).items() if name not in steps}
        else:
            for name in ("steps", "running", "torch_is"):
                self.data.pop(name, None)
        self._save()

    def remember(self, name: str, value: Any) -> None:
        if self.data.get(name) != value:
            self.data[name] = value
            self._save()

    def _save(self) -> None:
        write_json(self.path, self.data)
