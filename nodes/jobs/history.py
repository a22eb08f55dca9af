"""All that a job has reported so far, read from its folder and read on in: numbers by step, samples, saved files, answers to requests."""

from __future__ import annotations

import json
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...backend.musubi_backend import events
from .folder import JobFolder
from .musubi_log import LogFollower
from .progress import Progress
from .series import Series, buckets

LOSS, AVERAGE, RATE, SECONDS, VRAM, RAM, VALIDATION = "loss", "average", "lr", "seconds", "vram", "ram", "validation"
NAMES = (LOSS, AVERAGE, RATE, SECONDS, VRAM, RAM, VALIDATION)
_OF_STEP = (LOSS, AVERAGE, RATE, SECONDS)
LORA, STATE, SAMPLE = "lora", "state", "sample"
MOST_FILES, MOST_ANSWERS = 10_000, 100
_AT_ONCE = 1 << 22  # bytes
STEP, _BAR = b'"event": "step"', b'"event": "progress"'


@dataclass(frozen=True)
class Made:
    """A file or folder that a job has made. content: LORA, STATE, SAMPLE or that of an `output` event."""

    path: str
    content: str
    step: int = 0
    epoch: int = 0
    expert: str = ""
    prompt: int | None = None


@dataclass
class History:
    """files: only added to, so that its places name them. items: loss of each item, and how often it was trained, both of late: what was
    told before counts half as much each time. prompts: those of the samples, by what `Made.prompt` counts."""

    folder: JobFolder
    foreign: bool = False  # musubi-tuner writes no events: its log is read
    series: dict[str, Series] = field(default_factory=lambda: {name: Series() for name in NAMES})
    first: int | None = None
    last: int | None = None
    files: list[Made] = field(default_factory=list)
    items: dict[str, tuple[float, float]] = field(default_factory=dict)
    prompts: dict[int, str] = field(default_factory=dict)
    optimizer: events.Optimizer | None = None
    answers: deque[events.Request] = field(default_factory=lambda: deque(maxlen=MOST_ANSWERS))
    _position: int = 0
    _rest: bytes = b""

    def __post_init__(self) -> None:
        self._log = LogFollower(Progress()) if self.foreign else None
        self._lock = threading.Lock()  # what is looked at through numpy cannot grow meanwhile

    @property
    def points(self) -> int:
        """How many numbers it holds."""
        return sum(len(one.values) for one in self.series.values())

    def read_on(self) -> None:
        """Take in what is new in the job's folder."""
        with self._lock:
            self._read_on()

    def _read_on(self) -> None:
        for data in self._new(self.folder.log if self.foreign else self.folder.metrics):
            if self._log is not None:
                self._log.feed(data)
                losses, self._log.progress.losses = self._log.progress.losses, {}
                self._add(list(losses), {LOSS: list(losses.values())})
            else:
                lines = (self._rest + data).split(b"\n")
                self._rest = lines.pop()[: events.LONGEST_LINE]
                self._take(lines)

    def points_of(self, name: str) -> tuple[list[int], list[float]]:
        """The steps and values that a series has now."""
        with self._lock:
            return self.series[name].steps.tolist(), self.series[name].values.tolist()

    def between(self, names: tuple[str, ...], first: int | None, last: int | None, points: int) -> dict[str, Any]:
        """See `series.buckets`; without limits, all there is."""
        first, last = self.first if first is None else first, self.last if last is None else last
        chosen = {name: self.series[name] for name in names}
        if first is None or last is None or first > last:
            return {"width": 1, "steps": [], "series": {name: {"low": [], "high": [], "mean": []} for name in names}}
        with self._lock:
            return buckets(chosen, first, last, points)

    def _new(self, path: Path) -> Iterator[bytes]:
        try:
            with path.open("rb") as file:
                if self._position > file.seek(0, 2):  # the log was too long and began anew
                    self._position, self._rest = 0, b""
                file.seek(self._position)
                while data := file.read(_AT_ONCE):
                    self._position += len(data)
                    yield data
        except OSError:  # not there yet, or taken away
            return

    def _take(self, lines: list[bytes]) -> None:
        """Steps are nearly all of a long log, so those are read together."""
        steps = [line for line in lines if STEP in line]
        if steps:
            self._take_steps(steps)
        for line in lines:
            if line and STEP not in line and _BAR not in line:
                event = events.event_in(line)
                if event is not None:
                    self._take_event(event)

    def _take_steps(self, lines: list[bytes]) -> None:
        try:
            records = json.loads(b"[" + b",".join(lines) + b"]", parse_constant=lambda name: None)
            if not all(record["v"] == events.VERSION for record in records):
                raise ValueError
            records = [record for record in records if record["rank"] == 0]
            self._add([record["step"] for record in records], {name: [record[name] for record in records] for name in _OF_STEP})
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError):  # one of them is odd: each by itself
            found = [event for line in lines if isinstance(event := events.event_in(line), events.Step) and event.rank == 0]
            self._add([event.step for event in found], {name: [getattr(event, name) for event in found] for name in _OF_STEP})

    def _add(self, steps: list[int], values: Mapping[str, list[Any]]) -> None:
        """Steps that do not rise belong to no training: such lines are left out."""
        known = -1 if self.last is None else self.last
        if any(later <= earlier for earlier, later in zip([known, *steps], steps, strict=False)) or (steps and steps[-1] > 2**31 - 1):
            kept, last = [], known
            for place, step in enumerate(steps):
                if last < step < 2**31:
                    kept.append(place)
                    last = step
            steps, values = [steps[place] for place in kept], {name: [every[place] for place in kept] for name, every in values.items()}
        if not steps:
            return
        for name, every in values.items():
            self.series[name].extend(steps, every)
        self.first = steps[0] if self.first is None else self.first
        self.last = steps[-1]

    def _take_event(self, event: events.Event) -> None:
        take: Callable[[Any], None] | None = _TAKERS.get(type(event))
        if isinstance(event, events.Request):  # any of several processes hears one
            self.answers.append(event)
        elif isinstance(event, events.Items):  # each of several processes has its own
            self._hard(event)
        elif take is not None and event.rank == 0:
            take.__get__(self)(event)

    def _saved(self, event: events.Saved) -> None:
        content = STATE if "state" in event.content else LORA
        self._made(Made(event.path, content, event.step, event.epoch, event.expert))

    def _sample(self, event: events.Sample) -> None:
        known = {text: number for number, text in self.prompts.items()}
        number = event.index if 0 <= event.index < MOST_FILES else known.get(event.prompt, len(known))
        self.prompts[number] = event.prompt
        self._made(Made(event.path, SAMPLE, event.step, prompt=number))

    def _output(self, event: events.Output) -> None:
        for path in event.files or (event.path,):
            if path:
                self._made(Made(path, event.content))

    def _made(self, made: Made) -> None:
        if len(self.files) < MOST_FILES:
            self.files.append(made)

    def _optimizer(self, event: events.Optimizer) -> None:
        self.optimizer = event

    def _hard(self, event: events.Items) -> None:
        for name, loss, new in zip(event.names, event.losses, event.counts, strict=False):
            before, count = self.items.get(name, (0.0, 0.0))
            if new > 0 and (name in self.items or len(self.items) < MOST_FILES):
                self.items[name] = (before * count / 2 + loss * new) / (count / 2 + new), count / 2 + new

    def _memory(self, event: events.Memory) -> None:
        self._point(event.step, {VRAM: event.vram, RAM: event.ram})

    def _validation(self, event: events.Validation) -> None:
        if event.step == 0:  # before training
            self.first = 0
        self._point(event.step, {VALIDATION: event.loss})

    def _point(self, step: int, values: Mapping[str, float | None]) -> None:
        for name, value in values.items():
            one = self.series[name]
            if value is not None and 0 <= step < 2**31 and (not one.steps or step > one.steps[-1]):
                one.extend([step], [value])


_TAKERS: dict[type, Any] = {
    events.Saved: History._saved,
    events.Sample: History._sample,
    events.Output: History._output,
    events.Optimizer: History._optimizer,
    events.Memory: History._memory,
    events.Validation: History._validation,
}
