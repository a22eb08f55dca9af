"""State folders on disk: which there are, how far each is, whether it is whole. Reads no tensor and imports no torch: nodes ask it too.

A state's folder is accelerate's, as musubi-tuner uses it, plus our `training_state.json`: the position, the settings, and size and
checksum of the other files.
"""

from __future__ import annotations

import logging
import re
import secrets
import shutil
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from .. import atomic
from ..architectures.card import HIGH, LOW
from ..documents import read_json, whole_number
from ..errors import UserError
from ..weights.safetensors_file import read_header

T = TypeVar("T")

logger = logging.getLogger(__name__)

FORMAT = 1
POSITION_FILE, MODEL_FILE, OPTIMIZER_FILE, SCHEDULER_FILE, SCALER_FILE = (
    "training_state.json", "model.safetensors", "optimizer.bin", "scheduler.bin", "scaler.pt",
)  # fmt: skip
STATE_SUFFIX = "-state"
FILE_SUFFIX = ".safetensors"
OF_STOP = "ss_saved_by_stop"
"""In the metadata of a LoRA that is no checkpoint of its training, but was saved because it was stopped."""
EXPERT_NAMES = ("", LOW, HIGH)
"""What files of a training may be for; empty: for the whole model."""

_PIECE = 1 << 22
_NUMBER = r"(-\d{6}|-step(?P<step>\d{8}))?"


@dataclass
class Position:
    """Where a run is. epoch is 0-based; batch counts the batches of this epoch that all processes together have used;
    micro_step counts all forward passes of one process; step counts optimizer steps."""

    step: int = 0
    epoch: int = 0
    batch: int = 0
    micro_step: int = 0


@dataclass(frozen=True)
class SavedState:
    """What `read` found: position None means a state of musubi-tuner itself, which does not record one."""

    folder: Path
    position: Position | None
    seed: int | None
    losses: list[float]
    history: list[float]
    facts: dict[str, Any]
    validation: dict[int, float] = field(default_factory=dict)

    @property
    def step(self) -> int:
        return self.position.step if self.position else 0

    @property
    def settings(self) -> dict[str, Any]:
        """The options it was trained with, by name."""
        settings: dict[str, Any] = self.facts.get("settings", {})
        return settings


class DamagedState(UserError):
    """A state folder that is there but cannot be used."""


def read(folder: Path, *, whole: bool = False) -> SavedState:
    """Look at a state folder without loading it. whole: also compare the contents of its files with what was written, which reads
    them. UserError when it is missing, DamagedState when it is incomplete or damaged."""
    if not folder.is_dir():
        hint = ""
        if folder.parent.is_dir() and (near := sorted(path.name for path in folder.parent.glob(f"*{STATE_SUFFIX}"))):
            hint = f"; states there: {', '.join(near)}"
        raise UserError(f"--resume {folder} does not exist{hint}")
    for name in (MODEL_FILE, OPTIMIZER_FILE):
        if not (folder / name).is_file():
            raise DamagedState(
                f"--resume {folder} is not a training state: {name} is missing. Give a folder that --save_state wrote (its "
                "name ends in -state)"
            )
    try:
        read_header(folder / MODEL_FILE)
    except UserError as error:
        raise DamagedState(f"--resume {folder} is damaged: {error}") from error
    if not (folder / POSITION_FILE).is_file():
        return SavedState(folder, None, None, [], [], {})
    try:
        values = read_json(folder / POSITION_FILE, dict, paths=True)
        if whole_number(values["format"], "format") > FORMAT:
            raise UserError(f"--resume {folder} was written by a newer version of this program (format {values['format']}); update it")
        saved = _saved(folder, values)
        files = _files(values)
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedState(f"--resume {folder}: {POSITION_FILE} is damaged ({error!r}); use an older state") from error
    for name, written in files.items():
        if damage := _damage(folder / name, written, whole):
            raise DamagedState(f"--resume {folder} is damaged: {name} {damage}")
    return saved


def _saved(folder: Path, values: dict[str, Any]) -> SavedState:
    """What a position file says. ValueError, KeyError or TypeError where it holds something else."""
    position = Position(*(whole_number(values[key], key) for key in ("step", "epoch", "batch", "micro_step")))
    losses, history = ([float(loss) for loss in _of(list, values[key], key)] for key in ("losses", "history"))
    kinds: dict[str, type[Any]] = {"settings": dict, "of_stop": dict, "architecture": str, "dataset": str, "run": str}
    for key, kind in kinds.items():
        if key in values:
            _of(kind, values[key], key)
    for key in ("total_steps", "processes"):
        if key in values:
            whole_number(values[key], key)
    if "of_stop" in values:
        _of(bool, values["of_stop"]["lora"], "of_stop")
    seed = _of(int, values["seed"], "seed")
    whole_number(abs(seed), "seed", 2**64)
    validation = {
        whole_number(int(step), "step"): float(loss) for step, loss in _of(dict, values.get("validation", {}), "validation").items()
    }
    return SavedState(folder, position, seed, losses, history, values, validation)


def _files(values: dict[str, Any]) -> dict[str, dict[str, int]]:
    """name -> size and checksum of the state's other files."""
    files = _of(dict, values.get("files", {}), "files")
    for name, written in files.items():
        if name != Path(name).name:
            raise ValueError(f"files names {name!r}, which is no file of this folder")
        for key in ("size", "crc32"):
            whole_number(written[key], f"{key} of {name}")
    return files


def _of(kind: type[T], value: Any, name: str) -> T:
    if not isinstance(value, kind):
        raise ValueError(f"{name} is {str(value)[:60]!r}, and a {kind.__name__} is needed")
    return value


def contents(folder: Path) -> dict[str, dict[str, int]]:
    """Size in bytes and CRC-32 of each file in a state's folder, for `read` to compare with."""
    return {path.name: {"size": path.stat().st_size, "crc32": _checksum(path)} for path in sorted(folder.iterdir())}


def beside(folder: Path) -> tuple[Path, Path]:
    """New names for the state that is to be `folder` and for the one that was, while one takes the place of the other."""
    token = secrets.token_hex(4)
    part, old = (folder.with_name(f".{folder.name}.{token}.{kind}") for kind in ("part", "old"))
    return part, old


def names_of_run(name: str) -> list[str]:
    """The longest names, temporary ones among them, that a training called `name` gives in its output folder."""
    stem = f"{name}-step{0:08d}"
    state = Path(f"{stem}{STATE_SUFFIX}")
    inside = atomic.part_of(Path(POSITION_FILE)).name
    loras = [f"{stem}{expert_suffix(expert)}{FILE_SUFFIX}" for expert in EXPERT_NAMES]
    sample = f"sample/{name}_e{0:06d}_00_{0:014d}_{2**32}.mp4"
    return [*(f"{folder}/{inside}" for folder in (state, *beside(state))), *loras, f"{name}.loss.png", f".{name}.lock.{0:08x}", sample]


def of_run(folder: Path, name: str) -> list[Path]:
    """The states in an output folder that a training called `name` wrote, the furthest first. How far one is stands in it: times of
    files may be wrong."""
    if not folder.is_dir():
        return []
    named = re.compile(re.escape(name) + _NUMBER + re.escape(STATE_SUFFIX))
    found = [(match, path) for path in folder.iterdir() if (match := named.fullmatch(path.name)) and path.is_dir()]
    return [path for _, path in sorted(found, key=lambda entry: (_step_of(entry[1], entry[0]), entry[1].name), reverse=True)]


def furthest_whole(states: list[Path]) -> tuple[SavedState | None, list[str]]:
    """The first of `states` (see `of_run`) that is whole, and what is wrong with those before it."""
    problems: list[str] = []
    for folder in states:
        try:
            return read(folder, whole=True), problems
        except UserError as error:
            problems.append(str(error).removeprefix("--resume "))
    return None, problems


def before(folder: Path) -> SavedState | None:
    """The furthest whole state of the same training that is not the one in `folder` and not further."""
    states = of_run(folder.parent, run_name(folder))
    older = states[states.index(folder) + 1 :] if folder in states else []
    return furthest_whole(older)[0]


def run_name(folder: Path) -> str:
    """The name of the training that wrote a state's folder."""
    match = re.fullmatch(rf"(?P<name>.*?){_NUMBER}{STATE_SUFFIX}", folder.name)
    return match["name"] if match else folder.name


def clean_leftovers(folder: Path, name: str) -> None:
    """Undo what a killed run left half-way in its output folder: temporary files go, a state that was being replaced comes back.

    Only names this run could have made are touched. Nobody may be training there.
    """
    if not folder.is_dir():
        return
    experts = "|".join(expert_suffix(expert) for expert in EXPERT_NAMES)
    target_name = rf"{re.escape(name)}{_NUMBER}({STATE_SUFFIX}|({experts}){re.escape(FILE_SUFFIX)})"
    ours = re.compile(rf"\.(?P<target>{target_name})\.[0-9a-f]{{8}}\.(?P<kind>part|old)")
    for path in sorted(folder.iterdir()):
        match = ours.fullmatch(path.name)
        if match is None:
            continue
        target = folder / match["target"]
        if match["kind"] == "old" and not target.exists():
            logger.warning("putting back the state %s, which was being replaced when the last run was killed", target)
            path.rename(target)
            continue
        logger.info("removing what a killed run left: %s", path)
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def expert_suffix(expert: str) -> str:
    """What comes behind the name of a LoRA file that is for one of two experts."""
    return f"-{expert}" if expert else ""


def _step_of(folder: Path, match: re.Match[str]) -> int:
    """Of a state whose position cannot be read, the step in its name; without one, it is taken for the furthest, to be looked at."""
    try:
        return whole_number(read_json(folder / POSITION_FILE, dict, paths=True)["step"], "step")
    except (OSError, ValueError, KeyError, TypeError):
        return int(match["step"]) if match["step"] else 2**31


def _damage(path: Path, written: dict[str, int], whole: bool) -> str:
    """What is wrong with a file, or ""."""
    if not path.is_file():
        return "is missing"
    size = path.stat().st_size
    if size != written["size"]:
        return f"has {size} of {written['size']} bytes"
    return "does not hold what was written" if whole and _checksum(path) != written["crc32"] else ""


def _checksum(path: Path) -> int:
    value = 0
    for piece in _pieces(path):
        value = zlib.crc32(piece, value)
    return value


def _pieces(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            yield piece
