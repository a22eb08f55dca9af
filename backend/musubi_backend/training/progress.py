"""What a run shows: the step bar in musubi-tuner's form, the average loss, and how fast it goes."""

from __future__ import annotations

import time
from typing import Any

from tqdm import tqdm

from ..pace import Pace


class AverageLoss:
    """Mean loss over the last epoch's worth of batches; during the first epoch, over what there was so far."""

    def __init__(self, losses: list[float] | None = None) -> None:
        self.losses = list(losses or [])
        self._total = sum(self.losses)

    def add(self, batch: int, loss: float) -> None:
        """batch: index in the epoch, whose former value is replaced; behind the last one where values before it are not known."""
        if batch < len(self.losses):
            self._total += loss - self.losses[batch]
            self.losses[batch] = loss
        else:
            self._total += loss
            self.losses.append(loss)

    @property
    def value(self) -> float:
        return self._total / len(self.losses) if self.losses else 0.0


class _Bar(tqdm):  # type: ignore[type-arg]  # generic for type checkers only
    """tqdm, but the rate and the time left are those of `pace`: tqdm's own count saving and samples as steps, and a resumed run's."""

    def __init__(self, pace: Pace, **settings: Any) -> None:
        self.pace = pace
        super().__init__(**settings)

    @property
    def format_dict(self) -> dict[str, Any]:
        values = dict(super().format_dict)
        seconds = self.pace.seconds
        # a bar whose steps all lie before its start knows no rate
        return {**values, "rate": 1 / seconds} if seconds else {**values, "rate": None, "initial": values["n"]}


class StepBar:
    """`steps: 12%|#2 | 1/8 [00:00<00:03, 2.1it/s, avr_loss=2.03]` on stderr.

    Speed and time left are of steps alone: not of the first one, with its start-up costs, nor of what is done between `pause` and
    `resume`.
    """

    def __init__(self, total: int, done: int, shown: bool) -> None:
        self.pace = Pace()
        self._bar = _Bar(self.pace, total=total, desc="steps", dynamic_ncols=False, initial=done, disable=not shown)
        self._since = time.perf_counter()
        self._paused: float | None = None
        self._first = True

    def step(self, values: dict[str, float]) -> float:
        """One step is done; values go behind the rate. Returns the seconds it took."""
        now = time.perf_counter()
        seconds, self._since = now - self._since, now
        self.pace.add(1, seconds)
        self._bar.set_postfix(values, refresh=False)
        self._bar.update(1)
        if self._first:  # at once, however short it was
            self._first = False
            self._bar.refresh()
        return seconds

    def go_to(self, step: int, seconds: float) -> None:
        """Go on from another step, after so much time that is none of a step's."""
        self._bar.n = step
        self._bar.refresh()
        if self._paused is None:
            self._since += seconds

    def pause(self) -> None:
        """Leave out what follows (sampling, saving) from the next step's seconds: call `resume` after it."""
        self._paused = time.perf_counter()

    def resume(self) -> None:
        """Go on measuring."""
        if self._paused is not None:
            self._since += time.perf_counter() - self._paused
            self._paused = None

    def close(self) -> None:
        self._bar.refresh()
        self._bar.close()
