"""What a job's output says about its progress: tqdm bars and phase lines of both engines, and our own metrics events.

The wording is musubi-tuner's: its training bar is `steps:  12%|█▎  | 1/8 [00:00<00:07, 1.1s/it, avr_loss=2.03]`. The speeds in bars are
not shown, because they count warming up, samples and saving as steps: what is shown is measured here (`Pace`).
"""

from __future__ import annotations

import codecs
import math
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ...backend.musubi_backend.documents import parse_json
from ...backend.musubi_backend.pace import Pace

_BAR = re.compile(
    r"(?P<title>[^|]{0,300}?):?\s{0,9}(?P<percent>\d{1,3})%\|[^|]{0,300}\|\s{0,9}"
    r"(?P<n>\d{1,12}(?:\.\d{1,9})?)(?P<unit>[kMGT]?)B?/(?P<total>\d{1,12}(?:\.\d{1,9})?)[kMGT]?B? "
    r"\[[^<\]]+<[^,\]]+(?:,\s*[^,\]]+)?(?:,\s*(?P<postfix>.*))?\]"
)
_COUNT = re.compile(r"(?:(?P<title>[^|]{0,300}?):\s{1,9})?(?P<n>\d{1,12})it \[[^,\]]+(?:,\s*[^,\]]+)?\]")
_LINE_ENDS = re.compile(r"[\r\n]")
_LONGEST_LINE = 2000  # characters that are looked at
_LONGEST_EVENT = 1 << 20
_WRITES = re.compile(r"saving checkpoint: (?P<path>.+)|saving (?:last )?state\b")
_LOSS = re.compile(r"(?:avr_loss|loss)=([-+]?\d+(?:\.\d*)?(?:[eE][-+]?\d+)?|nan|[-+]?inf)")

_PHASES: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), text)
    for pattern, text in (
        (r"Load(?:ing)? dataset config from", "reading the dataset"),
        (r"glob (?:images|videos) in", "looking for files"),
        (r"found (\d+) (images|videos)", "found {0} {1}"),
        (r"Loading Qwen2\.5-VL from", "loading Qwen2.5-VL"),
        (r"Loading VAE(?: model)? from", "loading the VAE"),
        (r"(?:Loading|loading) (?:T5|text encoder)", "loading the text encoder"),
        (r"Encoding dataset \[(\d+)\]", "encoding dataset {0}"),
        (r"cache Text Encoder outputs for sample prompt", "encoding the sample prompts"),
        (r"Loading DiT model", "loading the transformer"),
        (r"create LoRA for .*?: (\d+) modules", "LoRA on {0} layers"),
        (r"prepare optimizer", "preparing the optimizer"),
        (r"resume training from local state: (.+)", "resuming from {0}"),
        (r"^running training", "training"),
        (r"^epoch (\d+)/(\d+)", "epoch {0} of {1}"),
        (r"generating sample", "making a sample"),
        (r"saving checkpoint: (.+)", "saving {0}"),
        (r"saving (?:last )?state", "saving the state"),
        (r"model saved", "saved"),
        (r"Processing prompt (\d+)/(\d+)", "prompt {0} of {1}"),
        (r"Starting sampling", "sampling"),
        (r"Decoding (?:output|video)", "decoding"),
        (r"(?:Video|Latent|Sample images) saved to: (.+)", "saved {0}"),
    )
)


@dataclass
class Progress:
    """Where a job is. `losses` maps step -> loss (finite ones only); `version` rises with every change.

    keep      what an end by force would lose, "" for nothing
    heard     it has answered a request to stop
    file, bytes  what it is writing just now, and how much of that is there
    outcome   how it was stopped, in its own words
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
    bytes: int = 0
    outcome: str = ""
    version: int = 0

    @property
    def text(self) -> str:
        """One line for people, e.g. "training · 12/100 · 1.3s/it · 01:54 left · loss 0.1234"."""
        parts = [self.phase]
        if self.step or self.total:
            parts.append(f"{self.step}/{self.total}" if self.total else str(self.step))
        if self.rate:
            parts.append(self.rate)
        if self.left and self.step != self.total:
            parts.append(f"{self.left} left")
        if self.loss is not None:
            parts.append(f"loss {self.loss:.4f}")
        return " · ".join(parts)


class Follower:
    """Feeds on the bytes of a log and the lines of metrics.jsonl; keeps `progress`."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self.progress = Progress()
        self._now = now
        self._pace = Pace()
        self._timed_by_events = False  # our own trainer says how long each step took
        self._bar_title, self._bar_step = "", 0
        self._bar_time: float | None = None  # when that step was read; None when other work came since
        self._read_at = 0.0
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._rest = ""
        self._metrics_rest = ""

    def feed_log(self, data: bytes) -> None:
        """Take the next bytes of the log; they may end anywhere, also inside a character."""
        self._read_at = self._now()
        pieces = _LINE_ENDS.split(self._decoder.decode(data))
        pieces[0] = self._rest + pieces[0]
        self._rest = pieces.pop()[:_LONGEST_LINE]  # what comes behind can say nothing
        for line in pieces:
            if line:
                self._line(line[:_LONGEST_LINE])

    def feed_metrics(self, text: str) -> None:
        """Take the next part of metrics.jsonl."""
        pieces = (self._metrics_rest + text).split("\n")
        self._metrics_rest = pieces.pop()[:_LONGEST_EVENT]
        for line in pieces:
            try:
                self._event(parse_json(line, dict, paths=True))
            except (ValueError, TypeError, OverflowError):
                continue  # half a line, written when the disk was full: one point of the curve

    def _line(self, line: str) -> None:
        bar = _BAR.match(line) if "%|" in line else None
        if bar:
            self._bar(bar)
            return
        count = _COUNT.match(line) if "it [" in line else None
        if count:
            self._measure(count["title"] or "", int(count["n"]))
            self._show(step=int(count["n"]), total=None, rate=self._pace.rate(), left="")
            return
        if self.progress.training and line.strip():
            self._bar_time = None  # saving, a sample, another epoch: not a step
        writes = _WRITES.search(line)
        if writes:
            self.progress.file = writes["path"] or "the state"
        for pattern, text in _PHASES:
            match = pattern.search(line)
            if match:
                self.progress.phase = text.format(*(_short(group) for group in match.groups()))
                if not self.progress.training:
                    self._show(step=0, total=None, rate="", left="")
                self.progress.version += 1
                return

    def _bar(self, bar: re.Match[str]) -> None:
        title = bar["title"].strip()
        if bar["unit"]:
            return  # a download or file bar: its numbers are scaled
        step, total = int(float(bar["n"])), int(float(bar["total"]))
        if title == "steps":
            self.progress.training = True
            self.progress.phase, self.progress.file = "training", ""
            self._loss(step, bar["postfix"] or "")
        elif self.progress.training:
            self._bar_time = None
            self.progress.phase = f"{_short(title) or 'working'} {step}/{total}"
            self.progress.version += 1
            return
        elif title:
            self.progress.phase = _short(title)
        if not self._timed_by_events:
            self._measure(title, step)
        self._show(step=step, total=total, rate=self._pace.rate(), left=self._pace.left(total - step))

    def _measure(self, title: str, step: int) -> None:
        """How long the steps since the last reading of the same bar took."""
        if title != self._bar_title or step < self._bar_step:
            self._pace, self._bar_time = Pace(), None
        if self._bar_time is not None and step > self._bar_step:
            self._pace.add(step - self._bar_step, self._read_at - self._bar_time)
        if self._bar_time is None or step != self._bar_step or title != self._bar_title:
            self._bar_title, self._bar_step, self._bar_time = title, step, self._read_at

    def _loss(self, step: int, postfix: str) -> None:
        match = _LOSS.search(postfix)
        if match and step not in self.progress.losses:
            self._record_loss(step, float(match[1]))

    def _record_loss(self, step: int, loss: float) -> None:
        self.progress.loss = loss if math.isfinite(loss) else None
        if math.isfinite(loss):
            self.progress.losses[step] = loss

    def _event(self, event: dict[str, Any]) -> None:
        progress = self.progress
        kind = event.get("event")
        if kind == "step" and isinstance(event.get("step"), int):
            progress.training = True
            if isinstance(event.get("loss"), (int, float)):
                self._record_loss(event["step"], float(event["loss"]))
            progress.step = max(progress.step, event["step"])
            progress.total = event["total"] if isinstance(event.get("total"), int) else progress.total
            if isinstance(event.get("seconds"), (int, float)):
                if not self._timed_by_events:
                    self._timed_by_events, self._pace = True, Pace()
                self._pace.add(1, event["seconds"])
                progress.rate, progress.left = self._pace.rate(), self._pace.left((progress.total or 0) - progress.step)
        elif kind == "sample":
            progress.sample = event["path"] if isinstance(event.get("path"), str) else progress.sample
        elif kind == "keep":
            progress.keep = str(event.get("what") or "")
        elif kind == "stopping":
            progress.heard, progress.file, progress.bytes = True, str(event.get("file") or ""), int(event.get("bytes") or 0)
        elif kind == "stopped":
            progress.outcome = str(event.get("text") or "")
        progress.version += 1

    def _show(self, *, step: int, total: int | None, rate: str, left: str) -> None:
        self.progress.step, self.progress.total, self.progress.rate, self.progress.left = step, total, rate, left
        self.progress.version += 1


def _short(text: str) -> str:
    """Paths shrink to their last part."""
    return re.split(r"[\\/]", text.strip())[-1][:80]
