"""What was learned comes to disk here: LoRA and state when they are due, when somebody asks for them, and when a training ends early.

A `Keeping` knows of which steps there is a state, so that nothing is saved twice, and tells what an end by force would lose.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Protocol

from .. import job
from ..errors import UserError
from .checkpoints import STATE

if TYPE_CHECKING:
    from .run import Run
    from .saved_states import Position
    from .state import TrainingState

logger = logging.getLogger(__name__)


class Kept(Protocol):
    """What is known here of the loop."""

    run: Run
    position: Position

    def state(self) -> TrainingState: ...


class Keeping:
    """Of one training."""

    def __init__(self, loop: Kept) -> None:
        self.loop, self.run = loop, loop.run
        self._complete_at: int | None = None  # the last step that state and LoRA were asked for of
        self.begin()

    def begin(self) -> None:
        """Where the loop is now is on disk, or is the start."""
        self._began_at = self._kept_step = self.loop.position.step

    @property
    def is_new(self) -> bool:
        """Was any step done?"""
        return self.loop.position.step > self._began_at

    def after_step(self) -> None:
        """Tell that there is something to lose, once."""
        if self.loop.position.step == self._kept_step + 1:
            job.keep(f"the steps after step {self._kept_step}")

    def save(self, stem: str, epoch: int) -> None:
        """The LoRA."""
        run = self.run
        run.processes.main_does(lambda: run.checkpoints.save_lora(stem, run.network, self.loop.position.step, epoch))

    def save_state(self, stem: str, reason: str) -> None:
        """The state; from then on nothing before this step can be lost."""
        self.run.processes.main_does(lambda: self._write_state(stem, reason, asked=False))
        self._is_kept()

    def save_asked(self) -> str:
        """State and LoRA of this step because somebody wants them; they stay, and a stop at this step needs no others. Returns what went
        wrong, in the main process; the training continues."""
        run, step = self.run, self.loop.position.step
        stem, problems = run.checkpoints.step_name(step), []

        def save() -> None:
            try:
                self._write_state(stem, f"at step {step}", asked=True)
                run.checkpoints.save_lora(stem, run.network, step, self.loop.position.epoch, asked=True)
            except (UserError, OSError) as problem:
                problems.append(str(problem))
                logger.error("what was asked for at step %d could not be saved, training continues: %s", step, problem)

        run.processes.main_does(save)
        if not run.processes.any(bool(problems)):
            self._complete_at = step
            self._is_kept()
        return "".join(problems)

    def keep(self) -> None:
        """Save state and LoRA of the last finished step, unless it was the first of all. Gradients of a window that was begun go."""
        run, step = self.run, self.loop.position.step
        run.choice.optimizer.zero_grad(set_to_none=True)
        run.choice.eval()
        if self.is_new and self._complete_at != step:
            stem = run.checkpoints.step_name(step)
            self.save_state(stem, f"at step {step}")  # before the LoRA, which is in it
            self.save(stem, self.loop.position.epoch)

    def try_to_keep(self) -> None:
        """As `keep`; where that fails it is said."""
        try:
            self.keep()
        except (UserError, RuntimeError, OSError) as problem:
            logger.error("what was learned until step %d could not be saved: %s", self.loop.position.step, problem)

    def _write_state(self, stem: str, reason: str, *, asked: bool) -> None:
        checkpoints, state = self.run.checkpoints, self.loop.state()
        with job.saving(checkpoints.state_folder(stem), STATE, state.bytes):
            checkpoints.save_state(stem, state, reason, asked=asked)

    def _is_kept(self) -> None:
        self._kept_step = self.loop.position.step
        job.keep("")
