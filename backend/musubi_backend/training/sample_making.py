"""Samples are made while a training goes on: once for a step, those of the last step once all is saved, and so that none that fails
ends the training."""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING, Protocol

from .. import job
from ..device import release
from ..errors import StopRequested, UserError

if TYPE_CHECKING:
    from torch import Tensor

    from .leaving import Leaving
    from .run import Run
    from .saved_states import Position
    from .stepping_down import SteppingDown

logger = logging.getLogger(__name__)


class Sampled(Protocol):
    """What is known here of the loop."""

    run: Run
    position: Position
    down: SteppingDown
    leaving: Leaving


class SampleMaking:
    """Of one training."""

    def __init__(self, loop: Sampled) -> None:
        self.loop, self.run, self.device = loop, loop.run, loop.run.processes.device
        self._late: list[int | None] | None = []  # of the last step, made when everything is saved; None from then on
        self._made_at: int | None = None  # the last step that samples were made of

    def make(self, epoch: int | None) -> str:
        """Make the sample videos, or note them for `make_late`; once where they are due by step and by epoch. Returns what went wrong, in
        the main process."""
        step = self.loop.position.step
        if self._made_at == step:
            return ""
        self._made_at = step
        if self._late is not None and step >= self.run.total_steps:
            self._late.append(epoch)
            return ""
        problems: list[str] = []
        latents = self._sample_together() if self.run.settings.memory.fsdp else None
        self.run.processes.main_does(lambda: problems.append(self._make(epoch, latents)))
        return "".join(problems)

    def make_late(self) -> None:
        """Those of the last step."""
        late, self._late, self._made_at = self._late or [], None, None
        for epoch in late:
            self.make(epoch)

    def _sample_together(self) -> list[Tensor]:
        """Latents of the samples, none once any process was asked to stop. Every process has a part of the weights, so all sample; one that
        fails alone would have the others gather something else, so the training ends then."""

        def stop() -> None:
            if self.run.processes.any(job.stop_requested()):
                job.request_stop()
                raise StopRequested("a stop was asked for")

        self.run.network.eval()
        try:
            with self.loop.leaving.together(), contextlib.suppress(StopRequested):
                return self.run.samples.sampled(self.run.transformer, self.loop.position.step, self.device, each=stop)
            return []
        finally:
            self.run.network.train()

    def _make(self, epoch: int | None, latents: list[Tensor] | None) -> str:
        """Those that `latents` are of, if they were sampled before. A stop request ends it early and is answered before the next
        micro-step; when it fails (a VAE that does not fit into memory), that is said and the training continues."""
        run, step, problem = self.run, self.loop.position.step, ""

        def make() -> None:
            run.network.eval()
            job.leave_if_asked("a stop was asked for")
            made = run.samples.sampled(run.transformer, step, self.device) if latents is None else latents
            run.samples.write(made, step, epoch, self.device)

        try:
            self.loop.down.surviving(make, lambda: run.samples.doing)
        except StopRequested as stop:
            problem = f"no more samples: {stop}"
            logger.info("%s", problem)
        except (UserError, RuntimeError, OSError) as error:
            if self.loop.down.lost:
                raise
            problem = str(error)
            logger.error("no samples at step %d, training continues: %s", step, error)
        if problem:
            release(self.device)  # what the frames of an error held
        run.network.train()
        return problem
