"""Where a job is: what its node shows, kept up to date by the events of our backend (`events.py` there). What musubi-tuner's scripts print
is read by `musubi_log.py` into the same `Progress`."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from ...backend.musubi_backend import events
from ...backend.musubi_backend.pace import Pace
from .folder import RUNNING, SAMPLING, SAVING, STARTING

_LONGEST = 80  # characters of a name
_MOST_WARNINGS = 200
_TRAINS = ("training", "epoch ")  # how phases of steps begin


@dataclass
class Progress:
    """Where a job is. `losses` maps step -> loss (finite ones only); `version` rises with every change.

    keep      what an end by force would lose, "" for nothing
    heard     it has answered a request to stop
    file      what it is writing just now; `content` as people call it, `bytes` of `expected` are there (0: unknown)
    sampling  it makes samples of a training
    paused    it was asked to, and waits
    learned   its last step: epoch, loss, average, learning rate
    start     what a training said before its first step
    pace      how fast its steps are
    requests  what became of requests to it
    outcome   how it was stopped, in its own words
    address   where a browser finds what it serves, "" for nothing
    warnings  what it says that does not end it, each once
    """

    phase: str = "starting"
    step: int = 0
    total: int | None = None
    rate: str = ""
    left: str = ""
    loss: float | None = None
    losses: dict[int, float] = field(default_factory=dict)
    sample: str | None = None
    training: bool = False
    keep: str = ""
    heard: bool = False
    file: str = ""
    content: str = ""
    bytes: int = 0
    expected: int = 0
    sampling: bool = False
    paused: bool = False
    learned: events.Step | None = None
    start: events.Start | None = None
    pace: Pace = field(default_factory=Pace)
    requests: list[events.Request] = field(default_factory=list)
    outcome: str = ""
    warnings: list[str] = field(default_factory=list)
    ended: events.Ended | None = None
    address: str = ""
    version: int = 0

    @property
    def state(self) -> str:
        """Its place in the life cycle, as far as its own words tell."""
        if self.file:
            return SAVING
        if self.sampling:
            return SAMPLING
        return RUNNING if self.version else STARTING

    @property
    def stepping(self) -> bool:
        """A training does its steps, and neither waits nor saves nor samples: the time left is that of the steps."""
        return self.phase.startswith(_TRAINS) and not self.paused

    @property
    def text(self) -> str:
        """One line for people, e.g. "loss 0.1234 · 12/100 · 01:54 left", as short as a node of the usual width takes it."""
        learns = self.loss is not None
        trains = learns and self.stepping  # which the loss and the step tell
        parts = [f"loss {self.loss:.4f}"] if learns else []
        if not trains:
            parts.append("paused" if self.paused else self.phase)
        if self.step or self.total:
            parts.append(f"{self.step}/{self.total}" if self.total else str(self.step))
        left = f"{self.left} left" if self.left and self.step != self.total else ""
        if not learns:
            parts += [left, self.rate]
        elif trains:
            parts.append(left or self.rate)
        return " · ".join(filter(None, parts))

    def show(self, *, step: int, total: int | None, rate: str = "", left: str = "") -> None:
        """The numbers of a bar."""
        self.step, self.total, self.rate, self.left = step, total, rate, left


class EventFollower:
    """Feeds on the bytes of `metrics.jsonl`, which may end anywhere; keeps `progress`, with the losses of all steps unless asked not to."""

    def __init__(self, progress: Progress, *, keep_losses: bool = True) -> None:
        self.progress = progress
        self._keep_losses = keep_losses
        self._reader = events.Reader()
        self._bar: tuple[str, int, float] | None = None  # title, how much was done, and when

    def feed(self, data: bytes) -> None:
        for event in self._reader.feed(data):
            self._take(event)
            self.progress.version += 1

    def _take(self, event: events.Event) -> None:
        progress = self.progress
        if isinstance(event, events.Request):  # any of several processes hears one
            progress.requests.append(event)
            if event.answer == events.DONE and event.name in (events.PAUSE, events.RESUME):
                progress.paused = event.name == events.PAUSE
        elif isinstance(event, events.Stopping):
            progress.heard = True
            if event.rank == 0:
                self._write(event.file, event.content, event.bytes, event.total)
        elif isinstance(event, events.Ended):
            if event.rank == 0:
                progress.ended = event
            if event.outcome == events.STOPPED and event.text:
                progress.outcome = event.text
        elif event.rank == 0:
            self._take_of_main(event)

    def _take_of_main(self, event: events.Event) -> None:
        progress = self.progress
        if isinstance(event, events.Start):
            progress.training, progress.start, progress.pace = True, event, Pace()
            progress.show(step=event.step, total=event.total)
        elif isinstance(event, events.Phase):
            progress.phase, progress.sampling = event.text, False
            if not progress.training:
                progress.show(step=0, total=None)
        elif isinstance(event, events.Progress):
            self._take_bar(event)
        elif isinstance(event, events.Step):
            self._take_step(event)
        elif isinstance(event, events.Keep):
            progress.keep = event.what
        elif isinstance(event, events.Saving):
            self._write(event.path, event.content, 0, event.bytes)
            what = event.content or short(event.path)
            progress.phase = f"saving {what}, {size(event.bytes)}" if event.bytes else f"saving {what}"
        elif isinstance(event, events.Saved):
            self._write("", "", 0, 0)
        elif isinstance(event, events.Sampling):
            progress.phase, progress.sampling = "making a sample", True
        elif isinstance(event, events.Sample):
            progress.sample = event.path
        elif isinstance(event, events.Warned):
            self._warn(event.text)
        elif isinstance(event, events.Address):
            progress.address = event.url
        elif isinstance(event, events.Output) and event.path and not progress.training:
            progress.phase = f"saved {short(event.path)}"

    def _take_bar(self, event: events.Progress) -> None:
        """In a training, the bars next to that of its steps say only what is being done."""
        progress, title = self.progress, short(event.title)
        if progress.training:
            progress.phase = f"{title or 'working'} {event.done}/{event.total}"
            return
        if title:
            progress.phase = title
        if self._bar is None or self._bar[0] != title or event.done < self._bar[1]:
            progress.pace = Pace()
        elif event.done > self._bar[1]:
            progress.pace.add(event.done - self._bar[1], event.clock - self._bar[2])
        if self._bar is None or self._bar[:2] != (title, event.done):
            self._bar = title, event.done, event.clock
        left = progress.pace.left(event.total - event.done) if event.total is not None else ""
        progress.show(step=event.done, total=event.total, rate=progress.pace.rate(), left=left)

    def _take_step(self, event: events.Step) -> None:
        progress = self.progress
        progress.training, progress.sampling, progress.phase = True, False, "training"
        progress.loss, progress.learned = event.loss, event
        if event.loss is not None and self._keep_losses:
            progress.losses[event.step] = event.loss
        if event.seconds is not None:
            progress.pace.add(1, event.seconds)
        step, total = max(progress.step, event.step), progress.total if event.total is None else event.total
        progress.show(step=step, total=total, rate=progress.pace.rate(), left=progress.pace.left((total or 0) - step))

    def _warn(self, text: str) -> None:
        """What is said of one item alone, and later in a list of all, counts once."""
        warnings = self.progress.warnings
        if len(warnings) < _MOST_WARNINGS and not any(text in other for other in warnings):
            warnings[:] = [other for other in warnings if other not in text] + [text]

    def _write(self, file: str, content: str, done: int, expected: int) -> None:
        progress = self.progress
        progress.file, progress.content, progress.bytes, progress.expected = file, content, done, expected


def short(text: str) -> str:
    """Paths shrink to their last part."""
    return re.split(r"[\\/]", text.strip())[-1][:_LONGEST]


def size(count: int) -> str:
    """Bytes for people: "412 MB", "1.8 GB"."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
