"""Optimizer and schedule are tried on two tiny matrices before anything heavy is loaded.

Classes of other libraries say only in their first step what they do not do (several rates, a metric per step), and a schedule that
is 0 all along trains nothing and says nothing.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..counted import counted
from ..errors import UserError
from . import optimizers, schedules
from .classes import words
from .settings import OptimizerSettings, ScheduleSettings, TrainingSettings
from .voided import check_schedule, in_effect, nothing_trained, voided

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

LONGEST = 20_000  # steps of a foreign schedule that are tried; a second at most


def rehearse(settings: TrainingSettings, rates: Sequence[float], total: int, device: torch.device) -> None:
    """One step of the optimizer and the rates of the whole run, as the settings have them.

    rates: the base rate of each group of parameters; total: steps of the run. UserError when the optimizer or the schedule cannot do
    it, or when a group's rate is 0 in every step. Settings that do not act are warned of.
    """
    import torch

    matrices = [torch.nn.Parameter(torch.full((4, 8), 0.1, device=device)) for _ in rates]
    groups = [{"params": [matrix], "lr": rate} for matrix, rate in zip(matrices, rates, strict=True)]
    choice = optimizers.build(settings.optimizer, settings.schedule.learning_rate, groups)
    acting = in_effect(settings, choice).schedule
    for one in voided(settings, choice):
        logger.warning("%s", one.text)
    if choice.sets_its_rate:
        schedules.check(acting, total)
    else:
        check_schedule(acting, total)
    schedule = schedules.build(acting, choice.optimizer, total, choice.schedule_free)
    choice.train()
    for matrix in matrices:
        matrix.grad = torch.full_like(matrix, 0.01)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the run will say them
        first = schedule.get_last_lr()
        _one_step(settings.optimizer, choice)
        highest = _highest_rates(settings.schedule, schedule, list(first), total)
    if not choice.sets_its_rate and not all(highest):
        which = "the learning rate is" if not any(highest) else "the learning rate of one group of weights is"
        raise UserError(nothing_trained(settings.schedule, total, which))


def _one_step(settings: OptimizerSettings, choice: optimizers.Choice) -> None:
    try:
        choice.optimizer.step()
    except Exception as error:  # whatever a foreign class throws, it is this class that cannot be used like this
        two = "; loraplus_lr_ratio gives two rates" if len(choice.optimizer.param_groups) > 1 else ""
        raise UserError(
            f"--optimizer_type {settings.optimizer_type} cannot do this training: {words(error)}{two}. Choose other settings or another "
            "optimizer, for example AdamW"
        ) from error


def _highest_rates(settings: ScheduleSettings, schedule: schedules.Schedule, rates: list[float], total: int) -> list[float]:
    """The highest rate of each group. A schedule of our own is looked at until every group has one; a foreign one to its end."""
    highest = [abs(rate or 0) for rate in rates]
    for step in range(1, total):
        if settings.lr_scheduler_type:
            if step > LONGEST:
                return [1.0] * len(highest)  # what comes later is not known
        elif all(highest):
            break
        try:
            schedule.step()
        except Exception as error:  # as above
            raise UserError(
                f"--lr_scheduler_type {settings.lr_scheduler_type or settings.lr_scheduler} cannot run the {counted(total, 'step')} of "
                f"this training; at step {step} it says: {words(error)}"
            ) from error
        highest = [max(high, abs(rate or 0)) for high, rate in zip(highest, schedule.get_last_lr(), strict=True)]
    return highest
