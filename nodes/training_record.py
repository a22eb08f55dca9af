"""What a run has gone through so far, over all its jobs: one curve of each series, what it saved and sampled, and that in words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..backend.musubi_backend.counted import counted
from .jobs.history import LORA, LOSS, RAM, RATE, SAMPLE, STATE, VALIDATION, VRAM, Made
from .jobs.index import Index
from .runs import Run
from .training_chart import Curve, Curves, smoothed

_GB = 1 << 30
_SHOWN_FILES, _SHOWN_ITEMS = 12, 5
_PLACES = (("step", "total"), ("epoch", "epochs"))


@dataclass(frozen=True)
class Record:
    """job: the newest job of the run, as `docs/monitor.md` has it; name: of the LoRA; peaks: bytes, None where nothing was noted.
    items: the hardest of the newest job first, with their losses."""

    job: dict[str, Any]
    name: str
    loss: Curve
    rate: Curve
    validation: Curve
    made: Sequence[Made]
    vram: float | None
    ram: float | None
    folder: Path
    items: Sequence[tuple[str, float]]

    @property
    def curves(self) -> Curves:
        """What there is to draw."""
        saves = sorted({one.step for one in self.made if one.content in (LORA, STATE)})
        samples = sorted({one.step for one in self.made if one.content == SAMPLE})
        return Curves(self.loss, self.rate, self.validation, saves, samples)

    def lines(self, smoothing: float) -> Iterator[str]:
        """The report. smoothing: of the losses that it names."""
        job = self.job
        yield f"{self.name}: {job['text'] or job['state']}"
        if job["error"]:
            yield f"error: {job['error'].splitlines()[0]}"
        place = [f"{what} {job[what]}" + (f" of {job[all_of]}" if job[all_of] else "") for what, all_of in _PLACES if job[what] is not None]
        yield " · ".join(place)
        if job["seconds_per_step"]:
            left = job["seconds_left"]
            yield f"{job['seconds_per_step']:.2f} s per step" + (f" · {_time(left)} left" if left else "")
        yield from self._losses(smoothing)
        if self.rate.values:
            yield f"learning rate: {self.rate.values[-1]:g}"
        peaks = [f"{what} {value / _GB:.1f} GB" for what, value in (("GPU memory", self.vram), ("system RAM", self.ram)) if value]
        if peaks:
            yield f"at most: {', '.join(peaks)}"
        if len(self.items) > 1:
            yield f"hardest items: {', '.join(f'{name} ({loss:.3f})' for name, loss in self.items[:_SHOWN_ITEMS])}"
        samples = [one for one in self.made if one.content == SAMPLE]
        if len(samples) == 1:
            yield f"1 sample, at step {samples[0].step}"
        elif samples:
            yield f"{len(samples)} samples, the last at step {samples[-1].step}"
        loras = [one for one in self.made if one.content == LORA]
        yield from (f"step {one.step}: {Path(one.path).name}" for one in loras[-_SHOWN_FILES:])
        if len(loras) > _SHOWN_FILES:
            yield f"and {counted(len(loras) - _SHOWN_FILES, 'LoRA')} before them"
        yield str(self.folder)

    def _losses(self, smoothing: float) -> Iterator[str]:
        steps, values = self.loss.steps, self.loss.values
        if not values:
            yield "no loss yet"
            return
        means = smoothed(values, smoothing)
        settled = means[len(means) // 10 :]  # a running mean of few values says little
        least = len(means) - len(settled) + min(range(len(settled)), key=settled.__getitem__)
        yield f"loss {values[-1]:.4f}, smoothed {means[-1]:.4f}; it began at {means[len(means) // 10]:.4f}"
        yield f"lowest smoothed loss: {means[least]:.4f} at step {steps[least]}"
        if self.validation.values:
            best = min(range(len(self.validation.values)), key=self.validation.values.__getitem__)
            now, least_ = self.validation.values[-1], self.validation.values[best]
            yield f"validation loss {now:.4f}; lowest {least_:.4f} at step {self.validation.steps[best]}"


def record(index: Index, run: str) -> Record | None:
    """What is known of a run by the name of its folder; None where no job of it is known. Reads whole logs: not for an event loop."""
    jobs = [job for job in index.jobs() if job["run"] == run and job["kind"] == "training"]
    if not jobs:
        return None
    folder = index.home / "runs" / run
    series: dict[str, dict[int, float]] = {LOSS: Run(folder, jobs[0]["name"]).losses_by_step()}
    made: list[Made] = []
    peaks: dict[str, float] = {}
    for job in reversed(jobs):  # where jobs overlap, one went on from an older state: the later counts
        history = index.history(job["id"])
        for name in (LOSS, RATE, VALIDATION):
            steps, values = history.points_of(name)
            known = series.get(name, {})
            series[name] = {step: value for step, value in known.items() if not steps or step < steps[0]}
            series[name] |= dict(zip(steps, values, strict=True))
        for name in (VRAM, RAM):
            peaks[name] = max([*history.points_of(name)[1], peaks.get(name, 0.0)])
        made += history.files
    curve = {name: Curve(sorted(values), [values[step] for step in sorted(values)]) for name, values in series.items()}
    hard = index.history(jobs[0]["id"]).items
    items = [(name, hard[name][0]) for name in sorted(hard, key=lambda name: -hard[name][0])]
    files = [one for one in made if one.content in (LORA, SAMPLE, STATE)]
    name = jobs[0]["name"]
    return Record(jobs[0], name, curve[LOSS], curve[RATE], curve[VALIDATION], files, peaks[VRAM] or None, peaks[RAM] or None, folder, items)


def validation_losses(index: Index, run: str) -> dict[int, float]:
    """By step, over all jobs of a run. Reads whole logs: not for an event loop."""
    known = record(index, run)
    return dict(zip(known.validation.steps, known.validation.values, strict=True)) if known else {}


def run_of(index: Index, training: str) -> str | None:
    """The newest run with this output name, or the newest of all for ""; None where there is none."""
    return next((job["run"] for job in index.jobs() if job["kind"] == "training" and job["run"] and training in ("", job["name"])), None)


def _time(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
