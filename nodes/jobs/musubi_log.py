"""What the log of a script of musubi-tuner says about its progress: its tqdm bars and phase lines. Our own backend says it in events.

Its training bar is `steps:  12%|█▎  | 1/8 [00:00<00:07, 1.1s/it, avr_loss=2.03]`. The speeds in bars are
not shown, because they count warming up, samples and saving as steps: what is shown is measured here (`Pace`).
"""

from __future__ import annotations

import codecs
import math
import re
import time
from collections.abc import Callable

from ...backend.musubi_backend.pace import Pace
from .progress import Progress, short

_BAR = re.compile(
    r"(?P<title>[^|]{0,300}?):?\s{0,9}(?P<percent>\d{1,3})%\|[^|]{0,300}\|\s{0,9}"
    r"(?P<n>\d{1,12}(?:\.\d{1,9})?)(?P<unit>[kMGT]?)B?/(?P<total>\d{1,12}(?:\.\d{1,9})?)[kMGT]?B? "
    r"\[[^<\]]+<[^,\]]+(?:,\s*[^,\]]+)?(?:,\s*(?P<postfix>.*))?\]"
)
_COUNT = re.compile(r"(?:(?P<title>[^|]{0,300}?):\s{1,9})?(?P<n>\d{1,12})it \[[^,\]]+(?:,\s*[^,\]]+)?\]")
_LINE_ENDS = re.compile(r"[\r\n]")
_LONGEST_LINE = 2000  # characters that are looked at
_WRITES = re.compile(r"saving checkpoint: (?P<path>.+)|saving (?:last )?state\b")
_LOSS = re.compile(r"(?:avr_loss|loss)=([-+]?\d+(?:\.\d*)?(?:[eE][-+]?\d+)?|nan|[-+]?inf)")

_SAMPLES = re.compile(r"generating sample")
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
        (_SAMPLES, "making a sample"),
        (r"saving checkpoint: (.+)", "saving {0}"),
        (r"saving (?:last )?state", "saving the state"),
        (r"model saved", "saved"),
        (r"Processing prompt (\d+)/(\d+)", "prompt {0} of {1}"),
        (r"Starting sampling", "sampling"),
        (r"Decoding (?:output|video)", "decoding"),
        (r"(?:Video|Latent|Sample images) saved to: (.+)", "saved {0}"),
    )
)


class LogFollower:
    """Feeds on the bytes of a log, which may end anywhere, also inside a character; keeps `progress`."""

    def __init__(self, progress: Progress, now: Callable[[], float] = time.monotonic) -> None:
        self.progress = progress
        self._now = now
        self._pace = Pace()
        self._bar_title, self._bar_step = "", 0
        self._bar_time: float | None = None  # when that step was read; None when other work came since
        self._read_at = 0.0
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._rest = ""

    def feed(self, data: bytes) -> None:
        self._read_at = self._now()
        pieces = _LINE_ENDS.split(self._decoder.decode(data))
        pieces[0] = self._rest + pieces[0]
        self._rest = pieces.pop()[:_LONGEST_LINE]  # what comes behind can say nothing
        for line in pieces:
            if line:
                self._line(line[:_LONGEST_LINE])

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
                self.progress.phase = text.format(*(short(group) for group in match.groups()))
                self.progress.sampling = pattern is _SAMPLES
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
            self.progress.phase, self.progress.file, self.progress.sampling = "training", "", False
            self._loss(step, bar["postfix"] or "")
        elif self.progress.training:
            self._bar_time = None
            self.progress.phase = f"{short(title) or 'working'} {step}/{total}"
            self.progress.version += 1
            return
        elif title:
            self.progress.phase = short(title)
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
            loss = float(match[1])
            self.progress.loss = loss if math.isfinite(loss) else None
            if math.isfinite(loss):
                self.progress.losses[step] = loss

    def _show(self, *, step: int, total: int | None, rate: str, left: str) -> None:
        self.progress.show(step=step, total=total, rate=rate, left=left)
        self.progress.version += 1
