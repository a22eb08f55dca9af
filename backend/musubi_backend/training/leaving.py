"""A training ends before its last step: because somebody asked for it, after an error, or when another process is gone.

Whatever the reason, what was learned is saved first, and several processes leave together: one that waits for another waits for ever.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, NoReturn

from .. import events, job
from ..errors import EXIT_USER_ERROR, StopRequested, UserError
from . import distributed

if TYPE_CHECKING:
    from pathlib import Path

    from .distributed import Processes
    from .keeping import Keeping
    from .stepping_down import SteppingDown


class Leaving:
    """Of one training."""

    def __init__(self, keeping: Keeping, down: SteppingDown) -> None:
        self.keeping, self.down, self.run = keeping, down, keeping.run
        self._kept = False  # what was learned is saved, or that failed
        self._state: Path | None = None  # where

    def if_asked(self) -> None:
        """Between two micro-steps: if any process was asked to stop, all save and leave. Raises StopRequested."""
        if self.run.processes.any(job.stop_requested()):
            self._leave()

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """A micro-step. When a stop leaves it in the middle, or an error ends it in any process, all save and leave."""
        several = self.run.processes.count > 1
        error: Exception | None = None
        try:
            with job.held() if several else contextlib.nullcontext():
                yield
        except StopRequested:
            self._leave()
        except Exception as raised:
            if distributed.lost_another(raised):
                raise
            error = raised
            if self.run.settings.memory.fsdp:  # the others wait for its part of a block's weights, and end when it does
                self.run.processes.part()
        if not self.run.processes.any(error is not None):
            return
        if down := self.down.together(error):
            raise down
        self._try_to_keep()
        if error is not None:
            raise error
        raise self.run.processes.failed_elsewhere()

    @contextlib.contextmanager
    def saving_first(self) -> Iterator[None]:
        """Steps and what is due between them: an error that ends them outside of a micro-step (a loss that is not finite) costs nothing
        that was learned before it."""
        try:
            yield
        except Exception as error:
            if not isinstance(error, StopRequested) and not distributed.lost_another(error):
                self.run.processes.part()  # others that fail alike do the same; who does not is left to itself
                self._try_to_keep()
            raise

    def _try_to_keep(self) -> None:
        """Once, and unless what is trained is in the middle of a step, or gone."""
        if not self._kept and not self.down.updating and not self.down.lost:
            self._kept = True
            self._state = self.keeping.try_to_keep()

    @contextlib.contextmanager
    def outliving_others(self) -> Iterator[None]:
        """When another process is gone, killed or with its machine, save before this one ends too."""
        try:
            yield
        except RuntimeError as error:
            if not distributed.lost_another(error):
                raise
            self.run.processes.outlive()
            self._kept = False  # where that was under way together, it did not come to its end
            self._try_to_keep()
            raise distributed.AnotherIsGone(str(error), self._state) from error

    def _leave(self) -> NoReturn:
        """Save what was learned and raise StopRequested. Where a save was asked for in the step that ends here, this is it."""
        run, step = self.run, self.keeping.loop.position.step
        job.request_stop()  # where another process was asked
        self._kept = True
        asked = run.processes.any(bool(job.take_requests([events.SAVE])))

        def answer(answer: str, text: str = "") -> None:
            if asked and run.processes.is_main:
                job.answer(events.SAVE, answer, step, text)

        try:
            written = self.keeping.keep(asked=asked)
            if not self.keeping.is_new:
                raise StopRequested(f"stopped before a step was done; there is nothing new to save (step {step} of {run.total_steps})")
        except (UserError, StopRequested) as problem:
            answer(events.IGNORED, str(problem))
            raise
        answer(events.DONE)
        state = run.checkpoints.state_folder(run.checkpoints.step_name(step))
        message = f"stopped after step {step} of {run.total_steps}; continue with --resume {written or state}"
        if written not in (None, state):
            raise StopRequested(message, f"stopped at step {step}; its folder could not be written, so the state is in {written}")
        raise StopRequested(message, f"stopped at step {step}, state saved (run again to continue)")


def say_who_is_gone(processes: Processes, error: BaseException) -> NoReturn:
    """As the error of this process, unless another one on this machine says it."""
    processes.outlive()
    news, state = processes.news(), getattr(error, "state", None)
    if not news:
        raise SystemExit(EXIT_USER_ERROR) from error
    rest = "" if state is None else f". What was learned is in {state}: continue with --resume {state}"
    raise UserError(f"{news}{rest}") from error
