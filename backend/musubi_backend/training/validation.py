"""The validation loss: that of items which are not trained on, always at the same noise and the same noise levels, so that it can be
compared between steps.

Each item is measured at a few levels that stand for equal shares of what is trained (its quantiles), without gradient and without any
dropout, and weighted as in training. Nothing of it reaches the training: generators of its own, and the network as it was afterwards.
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from .. import job
from ..console import Bar
from ..dataset.batches import BatchDescription
from ..errors import StopRequested, UserError
from ..layers.experts import boundary_of
from ..seeds import derived_seed
from .timesteps import noise_levels

if TYPE_CHECKING:
    from torch import Tensor

    from .run import Run
    from .settings import TimestepSampling

logger = logging.getLogger(__name__)

LEVELS = 4
"""Noise levels of each item."""

_DRAWS = 4096
_PHASE = "validating"

Load = Callable[[BatchDescription], dict[str, Any]]
Loss = Callable[[dict[str, Any], "Tensor", "Tensor", "Tensor", "Tensor"], "Tensor"]


class _Measured(NamedTuple):
    """item: its number; None where this process has none left."""

    item: int | None
    level: int


class Level(NamedTuple):
    """t, timesteps: [1], on the CPU; share: of what is trained, for which it stands."""

    t: Tensor
    timesteps: Tensor
    share: float


class Validation:
    """The items that are held out of a run, when they are due, and their loss."""

    def __init__(self, run: Run) -> None:
        settings = run.settings.validation
        self.run = run
        self.measured: dict[int, float] = {}
        """By the step after which it was; of a run that goes on, also what its state has."""
        self.items = run.held[: settings.max_validation_steps]
        self._settings = settings
        self._seed = run.seed if settings.validation_seed is None else settings.validation_seed
        self._levels: dict[tuple[int, int], list[Level]] = {}

    def due(self, step: int, epoch: int | None = None) -> bool:
        """Whether the loss is to be measured after `step`, or after `epoch` (1-based) when that is given. Step 0 is before training."""
        if not self.items:
            return False
        steps, epochs = self._settings.validate_every_n_steps, self._settings.validate_every_n_epochs
        if epoch is not None:
            every = 1 if steps is None and epochs is None else epochs
            return every is not None and epoch % every == 0
        return step in (0, self.run.total_steps) or (steps is not None and step % steps == 0)

    def measure(self, load: Load, loss_of: Loss, passes: Callable[[Exception], bool]) -> float | None:
        """Mean loss of the items, in all processes, of which each has its share; None where it was ended early: by a stop request, which is
        answered before the next micro-step, or by an error, which is said and ends no training.

        load: a batch to the device; loss_of: (batch, scaled latents, noise, t, timesteps) to a loss; passes: is an error somebody else's?
        """
        run, processes, work = self.run, self.run.processes, self._work()
        spread = run.settings.memory.fsdp
        losses = torch.zeros(len(self.items), dtype=torch.float64, device=processes.device)
        failed = False
        job.phase(_PHASE)
        run.network.eval()
        try:
            with torch.no_grad(), run.network.working_in(run.dtype), self._bar(len(work)) as bar:
                for one in work:
                    if processes.any(failed or job.stop_requested()):
                        break
                    try:
                        with job.held() if processes.count > 1 else contextlib.nullcontext():  # the others wait
                            if one.item is not None or spread:  # also for nothing: all run their blocks together
                                part = self._part(load, loss_of, one.item or 0, one.level)
                            if one.item is not None:
                                losses[one.item] += part
                    except StopRequested:
                        failed = True
                    except (UserError, RuntimeError, OSError) as error:
                        if passes(error) or spread:
                            raise
                        failed = True
                        logger.error("no validation loss, training continues: %s: %s", self.items[one.item or 0].name, error)
                    if bar is not None:
                        bar.update(1)
        finally:
            run.network.train()
        if processes.any(failed or job.stop_requested()):
            return None
        return float((processes.mean(losses) * processes.count).mean().item())

    def _work(self) -> list[_Measured]:
        """In the order in which this process measures; as many in each, and of two experts one after the other, as they may take turns on
        the device and may be spread over processes, so that all need the same one."""
        rank, count = self.run.processes.rank, self.run.processes.count
        numbers = range(rank, count * math.ceil(len(self.items) / count), count)
        every = [_Measured(number if number < len(self.items) else None, level) for number in numbers for level in range(LEVELS)]
        if boundary_of(self.run.transformer) is not None:
            every.sort(key=lambda one: one.level, reverse=True)
        return every

    def _part(self, load: Load, loss_of: Loss, item: int, level: int) -> Tensor:
        """What one level adds to the loss of an item, still on the device."""
        run, device, name = self.run, self.run.processes.device, self.items[item].name
        batch = load(BatchDescription((self.items[item],)))
        latents = run.architecture.scale_latents(batch["latents"].float())
        generator = torch.Generator(device).manual_seed(derived_seed(self._seed, "validation noise", name, level))
        noise = torch.randn(latents.shape, generator=generator, device=device)
        size = (int(latents.shape[-2]), int(latents.shape[-1]))
        if size not in self._levels:
            self._levels[size] = levels(run.settings.timesteps, size, boundary_of(run.transformer))
        at = self._levels[size][level]
        return at.share * loss_of(batch, latents, noise, at.t, at.timesteps).double()

    def _bar(self, count: int) -> contextlib.AbstractContextManager[Bar | None]:
        return Bar(count, _PHASE) if self.run.processes.is_main else contextlib.nullcontext()


def levels(sampling: TimestepSampling, size: tuple[int, int], boundary: float | None) -> list[Level]:
    """`LEVELS` noise levels that stand for what training draws: the middles of equal shares, from the least noise to the most. Of two
    experts each has one at least, if it is trained at all.

    size: (height, width) of the latents; boundary: where the experts meet.
    """
    generator = torch.Generator().manual_seed(0)
    t, timesteps = noise_levels(sampling, (_DRAWS, 1, *size), generator)
    order = timesteps.argsort(stable=True)
    t, timesteps = t[order], timesteps[order]
    low = _DRAWS if boundary is None else int((timesteps / 1000.0 < boundary).sum())
    of_low = min(max(round(LEVELS * low / _DRAWS), 1 if low else 0), LEVELS if low == _DRAWS else LEVELS - 1)
    found = []
    for start, length, count in ((0, low, of_low), (low, _DRAWS - low, LEVELS - of_low)):
        for number in range(count):
            place = start + int((number + 0.5) / count * length)
            found.append(Level(t[place : place + 1], timesteps[place : place + 1], length / _DRAWS / count))
    return found
