"""What was learned comes to disk here: LoRA and state when they are due, when somebody asks for them, and when a training ends early.

A `Keeping` knows of which steps there is a state, so that nothing is saved twice, and tells what an end by force would lose. Where a
checkpoint cannot be written (the disk is full), that is said, older ones stay, and the training goes on to the next; what comes last is
written elsewhere then.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Protocol, TypeVar

from .. import job, place
from ..errors import UserError
from .checkpoints import STATE

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from .run import Run
    from .saved_states import Position
    from .state import TrainingState

logger = logging.getLogger(__name__)

T = TypeVar("T")


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

    def save_due(self, stem: str, epoch: int, reason: str, rotate: Callable[[], object]) -> None:
        """The LoRA and, with `--save_state`, the state; then older ones go. reason: as `Checkpoints.save_state`."""
        run, with_state = self.run, self.run.settings.saving.save_state

        def save() -> None:
            run.checkpoints.save_lora(stem, run.network, self.loop.position.step, epoch)
            if with_state:
                self._write_state(stem, reason)
            rotate()

        whole, _ = self._tried("the checkpoint", save)
        if whole and with_state:
            self._is_kept()

    def save_asked(self) -> str:
        """State and LoRA of this step because somebody wants them; they stay, and a stop at this step needs no others. Returns what went
        wrong, in the main process; the training continues."""
        run, step = self.run, self.loop.position.step
        stem = run.checkpoints.step_name(step)

        def save() -> None:
            self._write_state(stem, f"at step {step}", asked=True)
            run.checkpoints.save_lora(stem, run.network, step, self.loop.position.epoch, asked=True)

        whole, problem = self._tried("what was asked for", save)
        if whole:
            self._complete_at = step
            self._is_kept()
        return problem

    def _tried(self, what: str, save: Callable[[], object]) -> tuple[bool, str]:
        """Have the main process save something the training can do without. Returns whether that was done, and what went wrong there."""
        problems: list[str] = []

        def attempt() -> None:
            try:
                save()
            except (UserError, OSError) as problem:
                problems.append(str(problem))
                logger.error("%s of step %d could not be saved, training continues: %s", what, self.loop.position.step, problem)

        self.run.processes.main_does(attempt)
        return not self.run.processes.any(bool(problems)), "".join(problems)

    def save_last(self) -> None:
        """What a training ends with: the state where it is wanted, and the LoRA. UserError where that could not be written into its folder;
        it says where it is instead."""
        run, saving = self.run, self.run.settings.saving
        if saving.save_state or saving.save_state_on_train_end:
            whole, _ = self._tried("the state", lambda: self._write_state(run.checkpoints.name, "(last)"))
            if whole:
                self._is_kept()
        run.processes.main_does(lambda: self._write_lora(run.checkpoints.name, run.epochs))

    def keep(self, *, asked: bool = False) -> Path | None:
        """Save state and LoRA of the last finished step, unless it was the first of all. Gradients of a window that was begun go. asked:
        somebody wants these, so they stay. Returns the state's folder, in the main process where there is one. UserError where it can be
        written nowhere."""
        run, step = self.run, self.loop.position.step
        run.choice.optimizer.zero_grad(set_to_none=True)
        run.choice.eval()
        written: list[Path] = []
        if self.is_new and self._complete_at != step:
            stem = run.checkpoints.step_name(step)
            # The LoRA is in it.
            run.processes.main_does(lambda: written.append(self._write_state_somewhere(stem, f"at step {step}", asked)))
            self._is_kept()
            if not run.processes.any(written != [run.checkpoints.state_folder(stem)] and run.processes.is_main):
                run.processes.main_does(lambda: self._write_lora(stem, self.loop.position.epoch, asked))
        return written[0] if written else None

    def try_to_keep(self) -> Path | None:
        """As `keep`; where that fails it is said."""
        try:
            return self.keep()
        except (UserError, RuntimeError, OSError) as problem:
            logger.error("what was learned until step %d could not be saved: %s", self.loop.position.step, problem)
            return None

    def _write_state(self, stem: str, reason: str, *, asked: bool = False, into: Path | None = None) -> Path:
        checkpoints, state = self.run.checkpoints, self.loop.state()
        with job.saving(checkpoints.state_folder(stem), STATE, state.bytes):
            return checkpoints.save_state(stem, state, reason, asked=asked, into=into)

    def _write_state_somewhere(self, stem: str, reason: str, asked: bool) -> Path:
        """The state of a training that ends: nobody has another one."""
        try:
            return self._write_state(stem, reason, asked=asked)
        except UserError as problem:
            logger.error("%s", problem)
            return _elsewhere(lambda folder: self._write_state(stem, reason, asked=asked, into=folder), problem)

    def _write_lora(self, stem: str, epoch: int, asked: bool = False) -> None:
        """The LoRA that a training ends with."""
        run, step = self.run, self.loop.position.step
        try:
            run.checkpoints.save_lora(stem, run.network, step, epoch, asked=asked)
        except UserError as problem:
            kept = _elsewhere(lambda folder: run.checkpoints.save_lora(stem, run.network, step, epoch, asked=asked, folder=folder), problem)
            raise UserError(f"{problem}. What was learned is in {' and '.join(map(str, kept))}: move it from there") from problem

    def _is_kept(self) -> None:
        self._kept_step = self.loop.position.step
        job.keep("")


def _elsewhere(write: Callable[[Path], T], problem: UserError) -> T:
    """As `place.elsewhere`. problem: of its own place."""
    try:
        return place.elsewhere(write)
    except (UserError, OSError):
        raise UserError(f"{problem}, and no other folder takes it. Make room, then continue with --resume on the newest state") from problem
