"""Training runs: `<home>/runs/<name>-<identity>/` holds what one set of settings has produced so far.

The identity is a hash of everything that decides the trained numbers (see `Option.effect`; model files, cached items), so that asking for
more steps, other samples or less memory continues in the same run, and changing anything else starts one of its own. What a run gave for a
length and a kind of file is kept in `results/`.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..backend.musubi_backend import content
from ..backend.musubi_backend.atomic import replacing, write_text
from ..backend.musubi_backend.documents import parse_json
from ..backend.musubi_backend.errors import UserError
from ..backend.musubi_backend.training import output_lock, saved_states

JOB = "MUSUBITUNER_JOB"


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

    def results(self, key: str) -> list[Path]:
        """Where the LoRAs of one length and kind of file are kept, in the order of the endings."""
        return [self.path / "results" / key / lora.name for lora in self.loras]

    def made(self, key: str) -> list[Path]:
        """What a training of one length and kind of file has just given: as it is kept, or where that cannot be, as it was written."""
        return self.results(key) if self.finished(key) is not None else self.loras

    def finished(self, key: str) -> dict[str, Any] | None:
        """What the finished run noted, if the LoRAs that are kept are still the files it wrote."""
        notes: dict[str, Any] | None = self._read().get("results", {}).get(key)
        return notes if notes is not None and notes["files"] == self._stamps(key) else None

    def state_to_continue(self, limit: Mapping[str, int]) -> tuple[saved_states.SavedState | None, list[str]]:
        """The furthest whole state that does not go beyond `limit` ("max_train_epochs", else "max_train_steps"), and what is wrong with
        those before it. A state that a killed training was replacing is put back."""
        if not self.path.is_dir():
            return None, []
        if output_lock.holder(output_lock.lock_file(self.path, self.name)) is None:
            saved_states.clean_leftovers(self.path, self.name)
        states = [folder for folder in saved_states.of_run(self.path, self.name) if _within(folder, limit)]
        return saved_states.furthest_whole(states)

    def add_losses(self, losses: Mapping[int, float]) -> list[float]:
        """Note losses by step; a resumed run continues in the same curve. Returns the whole curve in the order of steps."""
        notes = self._read()
        known = {**notes.get("losses", {}), **{str(step): loss for step, loss in losses.items()}}
        self._write({**notes, "losses": known})
        return [known[step] for step in sorted(known, key=int)]

    def finish(self, key: str, job: str, warnings: Sequence[str] = ()) -> None:
        """Note that the LoRAs are complete and keep them: a longer training of this run replaces its files. warnings: what the trainer
        said that is true of them."""
        for lora, kept in zip(self.loras, self.results(key), strict=True):
            kept.parent.mkdir(parents=True, exist_ok=True)
            with replacing(kept) as part:
                shutil.copyfile(lora, part)  # no link: musubi-tuner writes the next one into the same file
        notes, note = self._read(), {"files": self._stamps(key), "job": job, "warnings": list(warnings)}
        self._write({**notes, "results": {**notes.get("results", {}), key: note}})

    def _stamps(self, key: str) -> Any:
        return _json([content.stamp(path) for path in self.results(key)])

    def losses(self) -> list[float]:
        known = self.losses_by_step()
        return [known[step] for step in sorted(known)]

    def losses_by_step(self) -> dict[int, float]:
        """What `add_losses` noted."""
        return {int(step): loss for step, loss in self._read().get("losses", {}).items()}

    def _read(self) -> dict[str, Any]:
        path = self.path / "run.json"
        if not path.is_file():
            return {}
        try:
            notes: dict[str, Any] = parse_json(path.read_text(encoding="utf-8"), dict, paths=True)
        except ValueError:
            return {}  # only the curve and the shortcut are lost; the states and the LoRA are files of their own
        return notes

    def _write(self, notes: Mapping[str, Any]) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        write_text(self.path / "run.json", json.dumps(notes))


def _within(folder: Path, limit: Mapping[str, int]) -> bool:
    """False for a state that is further than the training is to go. What cannot be read is looked at by `furthest_whole`."""
    try:
        position = saved_states.read(folder).position
    except UserError:
        return True
    if position is None:
        return False
    epochs = limit.get("max_train_epochs")
    if epochs:
        return (position.epoch, position.batch) <= (epochs, 0)
    return position.step <= limit.get("max_train_steps", position.step)


def _json(value: Any) -> Any:
    return json.loads(json.dumps(value))
