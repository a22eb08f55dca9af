"""Training runs: `<home>/runs/<name>-<identity>/` holds what one set of settings has produced so far.

The identity is a hash of everything that decides the result (settings, model files, cached items), so that queueing the same
again finds the finished LoRA or the newest state to go on from, and changing anything starts a run of its own.
"""

from __future__ import annotations

import filecmp
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..backend.musubi_backend import content
from ..backend.musubi_backend.atomic import replacing, write_text

STATE_SUFFIX = "-state"
LORA_SUBFOLDER = "musubi_tuner"


@dataclass(frozen=True)
class Run:
    """endings: what the names of its LoRAs have after `name`: nothing for the one that most trainings make."""

    path: Path
    name: str
    endings: tuple[str, ...] = ("",)

    @property
    def loras(self) -> list[Path]:
        """Where the trainer writes the finished LoRAs, in the order of the endings."""
        return [self.path / f"{self.name}{ending}.safetensors" for ending in self.endings]

    @property
    def lora(self) -> Path:
        """The first of them."""
        return self.loras[0]

    def finished(self) -> dict[str, Any] | None:
        """What the finished run noted, if its LoRAs are still the files it wrote."""
        notes = self._read()
        if notes.get("finished") is None or notes["finished"] != self._stamps():
            return None
        return notes

    def newest_state(self) -> Path | None:
        """The state folder that was written last."""
        if not self.path.is_dir():
            return None
        states = [path for path in self.path.iterdir() if path.name.endswith(STATE_SUFFIX) and path.is_dir()]
        return max(states, key=lambda path: (path.stat().st_mtime_ns, path.name), default=None)

    def add_losses(self, losses: Mapping[int, float]) -> list[float]:
        """Note losses by step; a resumed run goes on in the same curve. Returns the whole curve in the order of steps."""
        notes = self._read()
        known = {**notes.get("losses", {}), **{str(step): loss for step, loss in losses.items()}}
        self._write({**notes, "losses": known})
        return [known[step] for step in sorted(known, key=int)]

    def finish(self, job: str) -> None:
        """Note that the LoRAs are complete."""
        self._write({**self._read(), "finished": self._stamps(), "job": job})

    def _stamps(self) -> Any:
        """Of one LoRA its stamp, of several a list of theirs."""
        stamps = [_json(content.stamp(path)) for path in self.loras]
        return stamps[0] if len(stamps) == 1 else (stamps if all(stamps) else None)

    def losses(self) -> list[float]:
        known = self._read().get("losses", {})
        return [known[step] for step in sorted(known, key=int)]

    def _read(self) -> dict[str, Any]:
        path = self.path / "run.json"
        if not path.is_file():
            return {}
        try:
            notes: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            return {}  # only the curve and the shortcut are lost; the states and the LoRA are files of their own
        return notes

    def _write(self, notes: Mapping[str, Any]) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        write_text(self.path / "run.json", json.dumps(notes))


def publish(lora: Path, loras: Path, name: str) -> tuple[str, Path, bool]:
    """Copy a finished LoRA to where ComfyUI offers it. Returns its name in the list of LoRAs, its path, and whether it replaced another."""
    target = loras / LORA_SUBFOLDER / f"{name}.safetensors"
    target.parent.mkdir(parents=True, exist_ok=True)
    existed = target.is_file()
    differs = not existed or not filecmp.cmp(lora, target, shallow=False)
    if differs:
        with replacing(target) as part:
            shutil.copyfile(lora, part)
    return os.path.join(LORA_SUBFOLDER, target.name), target, existed and differs  # noqa: PTH118 (a name, written as ComfyUI lists it)


def _json(value: Any) -> Any:
    return json.loads(json.dumps(value))
