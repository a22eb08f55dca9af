"""When the GPU's memory runs out while it trains: the settings step down once, and the training goes on at the step it was in.

What is trained is taken into system RAM, everything on the GPU goes, and it is made anew with settings that need less (`vram.lowered`),
none of which changes what is learned. Every random number follows from the micro-step, so what comes is what would have come with these
settings from the start. The loop, what is due in it and its record of losses stay.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol, TypeVar

import torch

from .. import exhausted, job
from ..device import release
from ..errors import StopRequested, UserError
from ..memory.estimate import STEP
from . import vram
from .built import Built, build
from .classes import words
from .progress import AverageLoss, StepBar
from .saved_states import Position
from .state import Contents, TrainingState

if TYPE_CHECKING:
    from ..architectures.protocol import Architecture
    from .keeping import Keeping
    from .run import Run
    from .settings import TrainingSettings

T = TypeVar("T")

logger = logging.getLogger(__name__)

_BETWEEN = 60.0  # seconds; what an optimizer's step that fails half-way costs at most


class RanOut(Exception):
    """The GPU's memory is full, here or in another process of the training. Its text says during what."""


class Stepper(Protocol):
    """What is known here of the loop."""

    run: Run
    position: Position
    average: AverageLoss
    history: list[float]
    bar: StepBar | None
    keeping: Keeping

    def state(self) -> TrainingState: ...

    def forget(self) -> None: ...

    def hold(self, built: Built, settings: TrainingSettings, architecture: Architecture) -> None: ...


@dataclass(frozen=True)
class _Kept:
    """A training after a step, in system RAM. losses, history: as in a state."""

    contents: Contents
    position: Position
    losses: list[float]
    history: list[float]


class SteppingDown:
    """Of one training: may be needed once."""

    def __init__(self, loop: Stepper) -> None:
        settings, device = loop.run.settings, loop.run.processes.device
        self.loop = loop
        alone = not settings.memory.fsdp  # of weights that are spread, all processes would have to let go at once
        self.left = int(alone and settings.vram != vram.OFF and (device.type == "cuda" or settings.vram is not None))
        self.updating = False
        """Is an optimizer's step half done? Then what the GPU holds is of no use."""
        self.lost = False
        """Is what is trained on its way, or did that fail? Then nothing can go on."""
        self._chosen: vram.Chosen | None = None
        self._last: _Kept | None = None
        self._at = 0.0

    def remember(self) -> None:
        """Keep what is there after a step, now and then, for an optimizer that fails half-way."""
        now = time.monotonic()
        if self.left and self.loop.run.processes.count == 1 and (self._last is None or now - self._at >= _BETWEEN):
            self._last, self._at = self._kept(), now

    def helps(self, error: BaseException, phase: str = STEP) -> bool:
        """Is `surviving` to have an error of that phase? Outside of a micro-step several processes have no way to leave together."""
        return self.loop.run.processes.count == 1 and self._may(error) and self._can(phase)

    def together(self, error: BaseException | None) -> RanOut | None:
        """Asked by all processes after a micro-step that failed in any: what all are to raise, where it helps in all."""
        processes, ours = self.loop.run.processes, error is not None and self._may(error)
        if not processes.any(ours) or processes.any(not self._can(STEP)):
            return None
        return RanOut(exhausted.work_of(error) if error is not None and ours else " in another process")

    def surviving(self, work: Callable[[], T], phase: Callable[[], str] = lambda: STEP) -> T:
        """What `work` gives; where the GPU's memory runs out in it, what it gives with settings that need less in that phase."""
        try:
            return work()
        except Exception as error:
            if not isinstance(error, RanOut) and not self.helps(error, phase()):
                raise
            during = str(error) if isinstance(error, RanOut) else exhausted.work_of(error)
        self._step_down(during)  # the error is gone by now, and what its frames held with it
        return work()

    def _may(self, error: BaseException) -> bool:
        return self.left > 0 and exhausted.of_gpu(error)

    def _can(self, phase: str) -> bool:
        """Is there anything with which it needs less? Planned once."""
        if self._chosen is None:
            self._chosen = self._lowered(phase)
        return self._chosen is not None

    def _lowered(self, phase: str) -> vram.Chosen | None:
        from .planned_batch import largest_batch
        from .planning import Planner

        run = self.loop.run
        job.phase("the GPU's memory is full: planning with less")
        try:
            planner = Planner(largest_batch(run.dataset), run.dtype, run.processes.device)
            with torch.enable_grad():  # it may have run out where nothing is learned
                return vram.lowered(run.values(), planner.of(run.architecture), phase)
        except Exception as error:  # the memory that ran out is the news, not that its plan fails
            logger.warning("no settings that need less can be planned: %s: %s", type(error).__name__, error)
            return None

    def _step_down(self, during: str) -> None:
        loop, run, start = self.loop, self.loop.run, time.monotonic()
        back = self._last if self.updating else None
        self.left, self._last = self.left - 1, None
        kept = back or self._kept()
        if back is None:
            loop.keeping.try_to_keep()  # more blocks in system RAM may be too many for it, which no error tells
        self.lost = True
        loop.forget()
        release(run.processes.device)
        assert self._chosen is not None, "only what can be done is begun"
        error: Exception | None = None
        try:
            self._build(self._chosen, kept)
        except Exception as raised:  # others would wait for this process
            error = raised
        run.processes.wait()  # for a slow disk
        if run.processes.any(error is not None):
            if error is None:
                raise run.processes.failed_elsewhere()
            raise _in_words(error, during, self._chosen.flags) from error
        if back is not None:
            loop.position = replace(back.position)
            loop.average, loop.history = AverageLoss(back.losses), list(back.history)
        self.updating = self.lost = False
        job.phase("training")
        if loop.bar is not None:
            loop.bar.go_to(loop.position.step, time.monotonic() - start)
        logger.warning(
            "the GPU's memory was full%s, so this training goes on after step %d with less: %s. That happens once; a second time ends it",
            during, loop.position.step, self._chosen.flags,
        )  # fmt: skip

    def _build(self, chosen: vram.Chosen, kept: _Kept) -> None:
        """Anew, with the settings chosen and the contents kept."""
        run, changes = self.loop.run, chosen.taken
        settings = run.settings.changed(**{name: value for name, value in changes.items() if name in run.settings.values()})
        architecture = run.architecture.configured({**run.architecture.settings.values(), **changes})
        built = build(settings, architecture, run.processes.device, run.dtype, run.seed, run.total_steps)
        self.loop.hold(built, settings, architecture)
        self.loop.state().take(kept.contents)

    def _kept(self) -> _Kept:
        state = self.loop.state()
        return _Kept(state.contents(), replace(state.position), list(state.losses), list(state.history))


def _in_words(error: Exception, during: str, flags: str) -> Exception:
    """Why the training could not be made anew."""
    if isinstance(error, (UserError, StopRequested)) or exhausted.out_of_memory(error):
        return error
    return UserError(
        f"the GPU's memory was full{during}, and this training could not go on with {flags}: {words(error)}. "
        "Give it these settings and run it again: it continues from its last state"
    )
