"""What is installed already: `<home>/install.json`, one stamp per finished step.

A stamp is the hash of everything the step depends on. A step whose stamp still matches is skipped; a step that was interrupted has
none and runs again.
"""

from __future__ import annotations

import hashlib
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


@dataclass
class State:
    path: Path
    data: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def load(cls, home: Path) -> State:
        path = home / "install.json"
        try:
            return cls(path, read_json(path))
        except ValueError:
            return cls(path)  # damaged: everything is checked and stamped anew

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
