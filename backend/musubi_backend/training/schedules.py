"""The learning rate schedule of a training: one of `rate_formulas`, a class of a library, or the optimizer's own."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

from ..errors import UserError
from .classes import check_arguments, find_class, keyword_arguments, words
from .rate_formulas import ARGUMENTS, resolve_steps, share_function
from .settings import ScheduleSettings

if TYPE_CHECKING:
    from torch.optim import Optimizer

logger = logging.getLogger(__name__)

_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


class Schedule(Protocol):
    """What the loop needs of a learning rate schedule; torch's LRScheduler has it."""

    def step(self) -> None: ...

    def get_last_lr(self) -> Any: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> None: ...


class OptimizerDecides:
    """The schedule of schedule-free optimizers: reports their rate and changes nothing."""

    def __init__(self, optimizer: Optimizer) -> None:
        self._optimizer = optimizer

    def step(self) -> None:
        """Nothing to do."""

    def get_last_lr(self) -> list[float]:
        return [group["lr"] for group in self._optimizer.param_groups]

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Nothing to restore: the optimizer's own state holds everything."""


def check(settings: ScheduleSettings, total: int) -> None:
    """Reject a schedule that cannot be made for `total` optimizer steps, before anything heavy is loaded. A warm-up that the run does not
    reach the end of is warned of."""
    if settings.lr_scheduler_type:
        _named_class(settings)
    elif not settings.lr_scheduler.startswith("adafactor"):
        share_function(settings, total)
        warmup = resolve_steps(settings.lr_warmup_steps, total, "--lr_warmup_steps")
        if warmup and settings.lr_scheduler.lower() == "piecewise_constant":
            logger.warning(
                "--lr_warmup_steps %s has no effect: step_rules of piecewise_constant say the rate of every step", settings.lr_warmup_steps
            )
        elif warmup >= total > 1:
            logger.warning(
                "--lr_warmup_steps: the warm-up takes %d of %d steps, so the learning rate never gets to %s; shorten it or train longer",
                warmup, total, settings.learning_rate,
            )  # fmt: skip


def build(settings: ScheduleSettings, optimizer: Optimizer, total: int, schedule_free: bool) -> Schedule:
    """The schedule chosen by `--lr_scheduler`, or the class named by `--lr_scheduler_type`.

    total: optimizer steps of the whole run. Raises UserError for unknown names and arguments.
    """
    from torch.optim.lr_scheduler import LambdaLR

    if schedule_free:
        return OptimizerDecides(optimizer)
    if settings.lr_scheduler_type:
        return _of_class(settings, optimizer)
    if settings.lr_scheduler.startswith("adafactor"):
        return _adafactor(settings.lr_scheduler, optimizer)
    schedule: Schedule = LambdaLR(optimizer, share_function(settings, total))
    return schedule


def _named_class(settings: ScheduleSettings) -> tuple[Any, Mapping[str, Any]]:
    """The class of `--lr_scheduler_type` and its arguments."""
    options = keyword_arguments(settings.lr_scheduler_args, ARGUMENTS)
    found = find_class(settings.lr_scheduler_type, "torch.optim.lr_scheduler", "--lr_scheduler_type")
    check_arguments(found, options, ARGUMENTS, f"--lr_scheduler_type {settings.lr_scheduler_type}", ("optimizer",))
    return found, options


def _of_class(settings: ScheduleSettings, optimizer: Optimizer) -> Schedule:
    """The schedule of `--lr_scheduler_type`; UserError where it cannot be made, or does not go forward by itself."""
    name = f"--lr_scheduler_type {settings.lr_scheduler_type}"
    try:
        found, options = _named_class(settings)
        schedule: Schedule = found(optimizer, **options)
    except UserError:
        raise
    except Exception as error:  # of any library's class
        raise UserError(f"{name} rejected its --lr_scheduler_args or this optimizer: {words(error)}") from error
    if not all(callable(getattr(schedule, method, None)) for method in ("step", "get_last_lr", "state_dict", "load_state_dict")):
        raise UserError(f"{name} is not a learning rate schedule: it lacks step or get_last_lr")
    needed = [one.name for one in inspect.signature(schedule.step).parameters.values() if one.default is one.empty and one.kind in _NAMED]
    if needed:
        raise UserError(f"{name} needs {' and '.join(needed)} in every step, which a training does not measure; choose another schedule")
    return schedule


def _adafactor(name: str, optimizer: Optimizer) -> Schedule:
    """transformers' read-out of the rate that a relative-step Adafactor chooses; `name` is "adafactor:<initial rate>"."""
    from transformers.optimization import Adafactor, AdafactorSchedule

    if not isinstance(optimizer, Adafactor) or not optimizer.defaults["relative_step"]:
        raise UserError(
            "--lr_scheduler adafactor shows the rate that --optimizer_type adafactor sets by itself, with relative_step=True; with a rate "
            "of your own choose another, such as constant_with_warmup"
        )
    _, _, initial = name.partition(":")
    try:
        schedule: Schedule = AdafactorSchedule(optimizer, float(initial or 0.0))
    except ValueError:
        raise UserError(f"--lr_scheduler {name!r}: the part after adafactor: must be a number") from None
    return schedule
