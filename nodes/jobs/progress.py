"""What a job's output says about its progress: tqdm bars and phase lines of both engines, and our own metrics events.

The wording is musubi-tuner's: its training bar is `steps:  12%|█▎  | 1/8 [00:00<00:07, 1.1s/it, avr_loss=2.03]`.
"""

from __future__ import annotations

import codecs
import json
import math
import re
from dataclasses import dataclass, field
from typing import Any

_BAR = re.compile(
    r"^(?P<title>.*?):?\s*(?P<percent>\d+)%\|.*?\|\s*(?P<n>\d+(?:\.\d+)?)(?P<unit>[kMGT]?)B?/(?P<total>\d+(?:\.\d+)?)[kMGT]?B? "
    r"\[(?P<spent>[^<\]]+)<(?P<left>[^,\]]+)(?:,\s*(?P<rate>[^,\]]+))?(?:,\s*(?P<postfix>.*))?\]"
)
_COUNT = re.compile(r"^(?:(?P<title>.*?):\s+)?(?P<n>\d+)it \[(?P<spent>[^,\]]+)(?:,\s*(?P<rate>[^,\]]+))?\]")
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
    """Where a job is. `losses` maps step -> loss (finite ones only); `version` rises with every change."""

    phase: str = "starting"
    step: int = 0
    total: int | None = None
    rate: str = ""
    left: str = ""
    loss: float | None = None
    losses: dict[int, float] = field(default_factory=dict)
    sample: str | None = None
    training: bool = False
    version: int = 0

    @property
    def text(self) -> str:
        """One line for people, e.g. "training · 12/100 · 1.3s/it · 01:54 left · loss 0.1234"."""
        parts = [self.phase]
        if self.step or self.total:
            parts.append(f"{self.step}/{self.total}" if self.total else str(self.step))
        if self.rate and "?" not in self.rate:
            parts.append(self.rate)
        if self.left and "?" not in self.left and self.step != self.total:
            parts.append(f"{self.left} left")
        if self.loss is not None:
            parts.append(f"loss {self.loss:.4f}")
        return " · ".join(parts)


class Follower:
    """Feeds on the bytes of a log and the lines of metrics.jsonl; keeps `progress`."""

    def __init__(self) -> None:
        self.progress = Progress()
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._rest = ""
        self._metrics_rest = ""

    def feed_log(self, data: bytes) -> None:
        """Take the next bytes of the log; they may end anywhere, also inside a character."""
        pieces = re.split(r"[\r\n]+", self._rest + self._decoder.decode(data))
        self._rest = pieces.pop()
        if len(self._rest) > 65536:
            self._rest = self._rest[-1024:]
        for line in pieces:
            self._line(line)

    def feed_metrics(self, text: str) -> None:
        """Take the next part of metrics.jsonl."""
        pieces = (self._metrics_rest + text).split("\n")
        self._metrics_rest = pieces.pop()
        for line in pieces:
            try:
                event = json.loads(line)
            except ValueError:
                continue  # half a line, written when the disk was full: one point of the curve
            if isinstance(event, dict):
                self._event(event)

    def _line(self, line: str) -> None:
        bar = _BAR.search(line)
        if bar:
            self._bar(bar)
            return
        count = _COUNT.search(line)
        if count:
            self._show(step=int(count["n"]), total=None, rate=count["rate"] or "", left="")
            return
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
            self.progress.phase = "training"
            self._loss(step, bar["postfix"] or "")
        elif self.progress.training:
            self.progress.phase = f"{_short(title) or 'working'} {step}/{total}"
            self.progress.version += 1
            return
        elif title:
            self.progress.phase = _short(title)
        self._show(step=step, total=total, rate=(bar["rate"] or "").strip(), left=bar["left"].strip())

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
            progress.total = event.get("total") or progress.total
        elif kind == "sample":
            progress.sample = event.get("path")
        progress.version += 1

    def _show(self, *, step: int, total: int | None, rate: str, left: str) -> None:
        self.progress.step, self.progress.total, self.progress.rate, self.progress.left = step, total, rate, left
        self.progress.version += 1


def _short(text: str) -> str:
    """Paths shrink to their last part."""
    return re.split(r"[\\/]", text.strip())[-1][:80]
