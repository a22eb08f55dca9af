"""Where a training begins: at its start, or at a saved state, which is read first and brought into what was built at last."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from .. import job
from ..counted import counted
from ..errors import UserError
from . import continuing, saved_states
from .saved_states import Position

if TYPE_CHECKING:
    from .distributed import Processes
    from .loop import Loop
    from .settings import ResumeSettings

logger = logging.getLogger(__name__)


def read(settings: ResumeSettings, processes: Processes) -> saved_states.SavedState | None:
    """The state that `--resume` names; None without. UserError for a damaged one, which names the one before it."""
    if not settings.resume:
        return None
    folder = Path(settings.resume)
    try:
        return saved_states.read(folder, whole=processes.is_main)
    except saved_states.DamagedState as error:
        older = saved_states.before(folder)
        hint = f"the one before it is whole, at step {older.step}: --resume {older.folder}" if older else "there is no other whole one"
        raise UserError(f"{error}; {hint}") from error


def begin(saved: saved_states.SavedState | None, digest: str) -> Position:
    """Where a training begins. digest: of its dataset; with another one than the state's an epoch begins again."""
    if saved is None or saved.position is None:
        return Position()
    return replace(saved.position) if saved.facts.get("dataset") == digest else replace(saved.position, batch=0)


def bring_to(loop: Loop, saved: saved_states.SavedState, position: Position, batches: int) -> None:
    """Bring a built run to a saved point. position: as `begin` found it; batches: of an epoch and process."""
    run = loop.run
    logger.info("resume training from local state: %s", saved.folder)
    job.phase(f"resuming from {saved.folder.name}")
    loop.state().restore(saved, new_schedule=continuing.has_new_schedule(saved, run.settings.schedule))
    if saved.position is None:
        logger.warning(
            "%s was saved by musubi-tuner and does not say how far it was: weights, optimizer and schedule continue, but epochs and "
            "steps count from the start",
            saved.folder,
        )
        return
    if saved.facts.get("dataset") != run.facts["dataset"]:
        logger.warning(
            "--resume: the dataset changed since the state was saved; epoch %d starts again with the new items",
            position.epoch + 1,
        )
    if saved.facts.get("processes") != run.processes.count:
        logger.warning(
            "--resume: the number of processes was %s when the state was saved and is %d now; they continue with the batches that are left "
            "of epoch %d, in the same order, but a step has as many as there are processes, so the continued run differs from an "
            "uninterrupted one",
            saved.facts.get("processes"), run.processes.count, position.epoch + 1,
        )  # fmt: skip
    planned = saved.facts.get("total_steps", run.total_steps)
    if planned != run.total_steps:
        logger.warning(
            "--resume: the state was on its way to %s, this training is to have %d; from step %d on the learning rate follows the "
            "schedule of %s",
            counted(planned, "step"), run.total_steps, position.step, counted(run.total_steps, "step"),
        )  # fmt: skip
    loop.go_to(position, saved.losses[-batches:], saved.history)  # with more processes they had been more
    loop.validation.measured.update(saved.validation)
    if position.step >= run.total_steps:
        logger.warning(
            "--resume: the state is at step %d, and --max_train_steps is %d: nothing is left to train",
            position.step,
            run.total_steps,
        )
