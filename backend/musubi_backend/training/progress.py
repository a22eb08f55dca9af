"""What a run shows: the step bar in musubi-tuner's form, the average loss, and how fast it goes."""

from __future__ import annotations

import time

from ..console import progress_bar


class AverageLoss:
    """Mean loss over the last epoch's worth of batches; during the first epoch, over what there was so far."""

    def __init__(self, losses: list[float] | None = None) -> None:
        self.losses = list(losses or [])
        self._total = sum(self.losses)

    def add(self, batch: int, loss: float) -> None:
        """batch: index in the epoch, whose former value is replaced."""
        while len(self.losses) <= batch:
            self.losses.append(0.0)
        self._total += loss - self.losses[batch]
        self.losses[batch] = loss

    @property
    def value(self) -> float:
        return self._total / len(self.losses) if self.losses else 0.0


class StepBar:
    """`steps: 12%|#2 | 1/8 [00:00<00:03, 2.1it/s, avr_loss=2.03]` on stderr.

    The first step, with its start-up costs, is not in the speed.
    """

    def __init__(self, total: int, done: int, shown: bool) -> None:
        self._bar = progress_bar(total, "steps", initial=done, disable=not shown)
        self._first = True
        self._since = self._paused = time.perf_counter()

    def step(self, values: dict[str, float]) -> float:
        """One step is done; values go behind the rate. Returns the seconds since the last one."""
        now = time.perf_counter()
        seconds, self._since = now - self._since, now
        self._bar.set_postfix(values, refresh=False)
        self._bar.update(1)
        if self._first and not self._bar.disable:
            self._first = False
            done = self._bar.n
            self._bar.reset()
            self._bar.initial = self._bar.n = self._bar.last_print_n = done
            self._bar.refresh()
        return seconds

    def pause(self) -> None:
        """Leave out what follows (sampling, saving) from the next step's seconds: call `resume` after it."""
        self._paused = time.perf_counter()

    def resume(self) -> None:
        self._since += time.perf_counter() - self._paused

    def close(self) -> None:
        self._bar.refresh()
        self._bar.close()
