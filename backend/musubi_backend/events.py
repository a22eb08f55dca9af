"""The event log of a job, `metrics.jsonl`: what a process tells of its work while it is done, one JSON object a line.

The envelope of every line: `event` (the kind), `v` (the version of this schema), `time` (seconds since 1970, for people and for comparing
machines), `clock` (a clock that never jumps, for durations within one process) and `rank` (of several processes; 0 is the main one).
The version rises when a field that is there changes its meaning; new kinds and new fields do not raise it, because a reader passes
over what it does not know. `docs/events.md` says what the fields mean. Standard library only: the nodes read with this module too.
"""

from __future__ import annotations

import json
import math
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any, ClassVar

from .documents import parse_json

VERSION = 1
FILE_NAME = "metrics.jsonl"
LONGEST_LINE = 1 << 20
"""Bytes. A longer line is damaged: no event comes near."""

SAVE, SAMPLE, PAUSE, RESUME, STOP_AFTER_EPOCH, STOP = "save", "sample", "pause", "resume", "stop_after_epoch", "stop"
REQUESTS = (SAVE, SAMPLE, PAUSE, RESUME, STOP_AFTER_EPOCH)
"""What a training does when a line with that word comes on its stdin, at the end of the step that it is in. "stop" comes on the same way
and is answered at once, by `Stopping`."""

HEARD, DONE, IGNORED = "heard", "done", "ignored"
FINISHED, STOPPED, FAILED = "finished", "stopped", "failed"


@dataclass(frozen=True, kw_only=True)
class Event:
    """The envelope. The writer fills it in (`line_of`)."""

    kind: ClassVar[str] = ""
    time: float = 0.0
    clock: float = 0.0
    rank: int = 0


@dataclass(frozen=True)
class Start(Event):
    """A training is ready for its first step, or for the one after `step` where it resumes."""

    kind: ClassVar[str] = "start"
    total: int
    step: int = 0
    epochs: int = 0
    items: int = 0


@dataclass(frozen=True)
class Phase(Event):
    """What it does from now on, in words for people: "loading the VAE"."""

    kind: ClassVar[str] = "phase"
    text: str


@dataclass(frozen=True)
class Progress(Event):
    """A bar: `done` of `total` (None where nobody knows) are behind it. title: "" for the main work of the phase."""

    kind: ClassVar[str] = "progress"
    done: int
    total: int | None = None
    title: str = ""


@dataclass(frozen=True)
class Step(Event):
    """An optimizer step is done. loss: mean of its batches, None where not finite; seconds: without saving and sampling before it."""

    kind: ClassVar[str] = "step"
    step: int
    total: int | None = None
    epoch: int = 0
    loss: float | None = None
    average: float | None = None
    lr: float | None = None
    seconds: float | None = None


@dataclass(frozen=True)
class Validation(Event):
    """The loss of items that are not trained on, with the weights after a step; 0 is before training. None where it is not finite."""

    kind: ClassVar[str] = "validation"
    step: int
    loss: float | None = None


@dataclass(frozen=True)
class Optimizer(Event):
    """What the optimizer says of itself after a step, in lines for people. Where it is asked for, at an interval."""

    kind: ClassVar[str] = "optimizer"
    step: int
    lines: tuple[str, ...] = ()


@dataclass(frozen=True)
class Items(Event):
    """Which items were how hard since the last such event: their names, mean losses and how often each was trained. Of a batch of several,
    each counts with the mean of the batch; of several processes, each tells of its own. The hardest come first."""

    kind: ClassVar[str] = "items"
    step: int
    names: tuple[str, ...] = ()
    losses: tuple[float, ...] = ()
    counts: tuple[float, ...] = ()


@dataclass(frozen=True)
class Memory(Event):
    """What the process takes, in bytes: GPU memory that PyTorch holds (None without a GPU) and system RAM. Every few seconds."""

    kind: ClassVar[str] = "memory"
    step: int
    vram: int | None = None
    ram: int | None = None


@dataclass(frozen=True)
class Saving(Event):
    """A file or folder begins to be written. content: as people call it, "the state"; bytes: how many it will have, 0 if unknown."""

    kind: ClassVar[str] = "saving"
    path: str
    content: str = ""
    bytes: int = 0


@dataclass(frozen=True)
class Saved(Event):
    """It is whole. expert: of which noise expert a LoRA is, "" for the only one."""

    kind: ClassVar[str] = "saved"
    path: str
    content: str = ""
    step: int = 0
    epoch: int = 0
    expert: str = ""


@dataclass(frozen=True)
class Sampling(Event):
    """The samples of a step begin to be made."""

    kind: ClassVar[str] = "sampling"
    step: int
    count: int = 0


@dataclass(frozen=True)
class Sample(Event):
    """One sample is written. index: of which of the prompts, from 0; -1 where that is not known."""

    kind: ClassVar[str] = "sample"
    path: str
    step: int = 0
    prompt: str = ""
    index: int = -1


@dataclass(frozen=True)
class Keep(Event):
    """What an end by force would lose from now on, "" for nothing."""

    kind: ClassVar[str] = "keep"
    what: str = ""


@dataclass(frozen=True)
class Request(Event):
    """What became of a line on stdin: HEARD at once, then DONE or IGNORED, with the reason or the result in `text`."""

    kind: ClassVar[str] = "request"
    name: str
    answer: str
    step: int = 0
    text: str = ""


@dataclass(frozen=True)
class Stopping(Event):
    """It was asked to stop and says so every `durations.BEAT` until it ends. file: what it is writing, with `bytes` of `total` there."""

    kind: ClassVar[str] = "stopping"
    file: str = ""
    content: str = ""
    bytes: int = 0
    total: int = 0


@dataclass(frozen=True)
class Ended(Event):
    """The last line of a process. outcome: FINISHED, STOPPED (`text`: what a node shows) or FAILED (`text`: the error)."""

    kind: ClassVar[str] = "ended"
    outcome: str
    text: str = ""


@dataclass(frozen=True)
class Warned(Event):
    """Something does not end the work, but whoever asked for it should know: a setting without effect, a state of another training."""

    kind: ClassVar[str] = "warning"
    text: str


@dataclass(frozen=True)
class Output(Event):
    """A result of a tool is written. content: latent, video, images, model, captions, or loss for the image of a training's losses."""

    kind: ClassVar[str] = "output"
    content: str
    path: str = ""
    files: tuple[str, ...] = ()
    count: int = 0


@dataclass(frozen=True)
class Address(Event):
    """A tool that serves something can be reached now, by a browser on the same machine."""

    kind: ClassVar[str] = "address"
    url: str


@dataclass(frozen=True)
class LoRAReport(Event):
    """What a LoRA tool found, in lines for people."""

    kind: ClassVar[str] = "lora_report"
    lines: tuple[str, ...] = ()


@dataclass(frozen=True)
class LoRAError(Event):
    """How much of a change a LoRA of this rank does not hold: shares of the Frobenius norm, of all layers and of the worst one."""

    kind: ClassVar[str] = "lora_error"
    lora_rank: int
    error: float | None = None
    worst: float | None = None
    layer: str = ""


KINDS: dict[str, type[Event]] = {
    kind.kind: kind
    for kind in (
        Start, Phase, Progress, Optimizer,
        Step, Items, Validation, Memory, Saving, Saved, Sampling, Sample, Keep, Request, Stopping, Ended, Warned,
        Output, Address,
        LoRAReport, LoRAError,
    )
}  # fmt: skip


def line_of(event: Event, *, time: float, clock: float, rank: int) -> str:
    """The line of an event, with its line end. Numbers that are not finite become null."""
    values = {name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in asdict(event).items()}
    envelope = {"event": event.kind, "v": VERSION, "time": round(time, 3), "clock": round(clock, 4), "rank": rank}
    return json.dumps({**values, **envelope}, ensure_ascii=False) + "\n"


def event_of(record: dict[str, Any]) -> Event | None:
    """The event in a line's object. None for an unknown kind, a newer version, or where a field that must be there is not of its type.
    Other fields fall back to their defaults, and unknown ones are left."""
    kind, version = record.get("event"), record.get("v", VERSION)
    known = KINDS.get(kind) if isinstance(kind, str) else None
    if known is None or type(version) is not int or version > VERSION:
        return None
    values = {}
    for field in fields(known):
        value = _fitting(record.get(field.name), str(field.type))
        if value is not None:
            values[field.name] = value
        elif field.default is MISSING:
            return None
    return known(**values)


def _fitting(value: Any, wanted: str) -> Any:
    """The value if it has the type of that annotation, None otherwise."""
    wanted = wanted.removesuffix(" | None")
    if wanted == "int":
        return value if type(value) is int and abs(value) < 2**53 else None
    if wanted == "float":
        fits = type(value) in (int, float) and abs(value) < 2**1023 and math.isfinite(value)
        return float(value) if fits else None
    if wanted == "tuple[float, ...]":
        numbers = [_fitting(one, "float") for one in value] if isinstance(value, list) else [None]
        return None if None in numbers else tuple(numbers)
    if wanted == "str":
        return value if isinstance(value, str) else None
    return tuple(value) if isinstance(value, list) and all(isinstance(one, str) for one in value) else None


class Reader:
    """Reads a log that is still being written: it is fed bytes that end anywhere, and gives the events of whole lines. Damaged lines, as a
    full disk leaves them, and lines of unknown kinds are passed over."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[Event]:
        lines = data.split(b"\n")
        lines[0] = self._rest + lines[0]
        self._rest = lines.pop()[:LONGEST_LINE]
        return [event for line in lines if line.strip() and (event := event_in(line)) is not None]


def read(path: Path) -> list[Event]:
    """All events of a log. Empty where there is no such file."""
    try:
        return Reader().feed(path.read_bytes())
    except FileNotFoundError:
        return []


def event_in(line: bytes) -> Event | None:
    """The event in a whole line; None for what is damaged or unknown."""
    try:
        return event_of(parse_json(line.decode("utf-8", "replace"), dict, paths=True))
    except ValueError:
        return None
