"""The checkpoints of a training that is done: found from its run folder, its output name, a folder, or a list of files."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..backend.musubi_backend.counted import counted
from ..backend.musubi_backend.errors import UserError
from ..backend.musubi_backend.lora.ema_schedule import counted_once
from ..backend.musubi_backend.training.saved_states import OF_STOP
from ..backend.musubi_backend.weights.safetensors_file import read_header
from .jobs import guard
from .spec import Host
from .widgets import NONE

_NUMBER = re.compile(r"-(?:step(?P<step>\d{8})|(?P<epoch>\d{6}))$")


@dataclass(frozen=True)
class Checkpoint:
    """One file and the epoch or step in its name; None for the last of a training, whose name has none."""

    path: Path
    number: int | None

    @property
    def counts(self) -> str:
        """What the number counts: "step" or "epoch"; "" without one."""
        match = _NUMBER.search(self.path.stem)
        return "" if match is None else "step" if match["step"] else "epoch"

    @property
    def step(self) -> int:
        """At which it was saved: by its metadata, else the number in its name. UserError where it cannot be read."""
        said = read_header(self.path).metadata.get("ss_steps", "")
        return int(said) if said.isdecimal() and len(said) < 10 else self.number or 0

    @property
    def label(self) -> str:
        return "last" if self.number is None else str(self.number)


def find(host: Host, text: str, run: str | None = None) -> list[Checkpoint]:
    """The checkpoints that `text` names, oldest first: files (one per line, in the order given), a folder, or the output name of a
    training. What is the same step under two names counts once.

    run: a run folder, used where `text` is empty. UserError when there are none or they may not be read."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    checkpoints = _named(host, lines, run)
    kept = counted_once([read_header(checkpoint.path).metadata for checkpoint in checkpoints])
    return [checkpoints[index] for index in kept]


def _named(host: Host, lines: list[str], run: str | None) -> list[Checkpoint]:
    if not lines:
        if not run:
            raise UserError("checkpoints: connect a trainer's job, or enter an output name, a folder or files")
        return _of_folder(Path(run))
    if len(lines) == 1 and not lines[0].endswith(".safetensors"):
        return _of_folder(_folder(host, lines[0]))
    return [_checkpoint(_file(host, line)) for line in lines]


def by_step(run: Path) -> dict[int, dict[str, Path]]:
    """The LoRAs in a run folder by the step they were saved at and the noise expert they are for, "" for the only one. Of several of one
    step that of the training's end counts, as it is published under its name."""
    found: dict[int, dict[str, Path]] = {}
    for path in sorted(run.glob("*.safetensors"), key=lambda path: _NUMBER.search(path.stem) is None):
        try:
            expert = read_header(path).metadata.get("ss_expert", "")
            found.setdefault(_checkpoint(path).step, {})[expert] = path
        except UserError:  # it is being written
            continue
    return found


def choices(host: Host) -> list[str]:
    """What a widget offers that chooses a training, or none."""
    return [NONE, *trainings(host.home)]


def named(values: Mapping[str, Any]) -> str:
    """What names the checkpoints, of the two widgets that may: `checkpoints` and `training`. UserError where both do."""
    written, training = values.get("checkpoints", "").strip(), values.get("training") or NONE
    if training == NONE:
        return str(written)
    if written:
        raise UserError("checkpoints: training names some already: empty this, or set training to none")
    return str(training)


def trainings(home: Path) -> list[str]:
    """The output names of all trainings, the newest first."""
    runs = home / "runs"
    found = [path for path in runs.iterdir() if path.is_dir() and "-" in path.name] if runs.is_dir() else []
    found.sort(key=lambda path: path.stat().st_mtime_ns, reverse=True)
    return list(dict.fromkeys(path.name.rpartition("-")[0] for path in found))


def between(checkpoints: list[Checkpoint], first: float, last: float) -> list[Checkpoint]:
    """Those from `first` to `last` of the whole, as shares of it; never fewer than two where there are two."""
    count = len(checkpoints)
    start, stop = round(first * (count - 1)), round(last * (count - 1)) + 1
    if stop - start < 2:
        raise UserError(
            f"first and last leave {max(0, stop - start)} of {counted(count, 'checkpoint')}; two or more are averaged. Save them more "
            "often while training (save_every_n_epochs), or take a wider range"
        )
    return checkpoints[start:stop]


def spread(checkpoints: list[Checkpoint], count: int) -> list[Checkpoint]:
    """At most so many, evenly spread, the last always among them; of one alone that is the one."""
    last = len(checkpoints) - 1
    places = {round(last - last * number / max(1, count - 1)) for number in range(count)}
    return [checkpoints[place] for place in sorted(places)]


def _file(host: Host, line: str) -> Path:
    """A file of ComfyUI's list of LoRAs, or a path."""
    if line.replace("\\", "/") in {name.replace("\\", "/") for name in host.model_names("loras")}:
        return host.model_path("loras", line)
    return guard.inside(line, host.allowed_roots(), "checkpoints", relative_to=(host.home, host.loras_dir()))


def _folder(host: Host, name: str) -> Path:
    """The run folder of an output name (the newest of several), else a folder by its path."""
    found = _newest_run(host.home, name)
    if found is not None:
        return found
    path = guard.inside(name, host.allowed_roots(), "checkpoints", relative_to=(host.home, host.loras_dir()))
    if not path.is_dir():
        raise UserError(f"checkpoints: {path} is neither a training of this pack nor a folder")
    return path


def run_folder(home: Path, name: str, what: str) -> Path:
    """The newest run folder of an output name. UserError where there is none; what: the widget that named it."""
    found = _newest_run(home, name)
    if found is None:
        raise UserError(f"{what}: there is no training {name!r} (any more)")
    return found


def _newest_run(home: Path, name: str) -> Path | None:
    runs = home / "runs"
    if not runs.is_dir() or "/" in name or "\\" in name:
        return None
    mine = [path for path in runs.iterdir() if path.is_dir() and path.name.rpartition("-")[0] == name]
    return max(mine, key=lambda path: path.stat().st_mtime_ns, default=None)


def _of_folder(folder: Path) -> list[Checkpoint]:
    """The LoRAs of one training in a folder: those with the commonest beginning of a name."""
    families: dict[tuple[str, str], list[Checkpoint]] = {}
    for path in sorted(folder.glob("*.safetensors")) if folder.is_dir() else []:
        if OF_STOP in read_header(path).metadata:
            continue  # no checkpoint of the training: it was stopped there, once
        checkpoint = _checkpoint(path)
        match = _NUMBER.search(path.stem)
        kind = "" if match is None else "step" if match["step"] else "epoch"
        families.setdefault((_NUMBER.sub("", path.stem), kind), []).append(checkpoint)
    numbered = {key: found for key, found in families.items() if key[1]}
    if not numbered:
        raise UserError(
            f"checkpoints: {folder} holds no numbered checkpoints (name-000001.safetensors, name-step00000100.safetensors). Set "
            "save_every_n_epochs or save_every_n_steps in LoRA Training Config"
        )
    name, _ = max(numbered, key=lambda key: (len(numbered[key]), key))
    chosen = max((found for (stem, _), found in numbered.items() if stem == name), key=len)
    return sorted([*chosen, *families.get((name, ""), [])], key=_age)


def _checkpoint(path: Path) -> Checkpoint:
    match = _NUMBER.search(path.stem)
    return Checkpoint(path, int(match["step"] or match["epoch"]) if match else None)


def _age(checkpoint: Checkpoint) -> tuple[bool, int]:
    return checkpoint.number is None, checkpoint.number or 0
