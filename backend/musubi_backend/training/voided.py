"""Learning rates and schedules that do not act, or are 0 all along: said or rejected before a training, and written as it is in the LoRA's
metadata. No torch is needed, so the nodes ask too, when a prompt is queued.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

from ..counted import counted
from ..errors import UserError
from ..optimizers.registry import find, plain
from . import schedules
from .rate_formulas import share_function
from .settings import ScheduleSettings, TrainingSettings

_FIND_THEIR_RATE = ("prodigy", "dadapt")
_LEAST_FACTOR = 0.1
_FIXED_RATE = "--optimizer_args relative_step=False"


class Chosen(Protocol):
    """What matters here of an optimizer."""

    @property
    def sets_its_rate(self) -> bool: ...

    @property
    def schedule_free(self) -> bool: ...


@dataclass(frozen=True)
class Voided:
    """A setting without effect, and a sentence about it. rejected: nobody can have meant it."""

    setting: str
    text: str
    rejected: bool = False


def sets_its_rate(kind: str, arguments: Mapping[str, Any]) -> bool:
    """True for Adafactor with relative steps, which is its default; `warmup_init` turns them on too."""
    return plain(kind) == "adafactor" and bool(arguments.get("relative_step", True) or arguments.get("warmup_init", False))


def keeps_its_rate(kind: str, arguments: Mapping[str, Any]) -> bool:
    """True for schedule-free optimizers: those of the table, unless told otherwise, and of other libraries those that are called so."""
    entry = find(kind)
    if entry is None:
        return "schedulefree" in plain(kind.rpartition(".")[2])
    return entry.schedule_free and bool(arguments.get("use_schedulefree", True))


@dataclass(frozen=True)
class Acting:
    """The rate and the schedule that act, in musubi-tuner's words. learning_rate: None where the optimizer sets it."""

    learning_rate: float | None
    schedule: ScheduleSettings


def in_effect(settings: TrainingSettings, choice: Chosen) -> Acting:
    """What acts of the settings of the learning rate. UserError where what is voided cannot be meant."""
    refused = [one.text for one in voided(settings, choice) if one.rejected]
    if refused:
        raise UserError("\n".join(refused))
    given = settings.schedule
    if choice.sets_its_rate:
        name, _, first = given.lr_scheduler.partition(":")
        shown = first if name == "adafactor" and first else given.learning_rate
        return Acting(None, replace(given, lr_scheduler=f"adafactor:{shown}"))
    if choice.schedule_free:
        given = replace(given, lr_scheduler="constant", lr_scheduler_type="", lr_warmup_steps=0, lr_decay_steps=0)
    elif given.lr_scheduler_type:
        given = replace(given, lr_scheduler=given.lr_scheduler_type, lr_warmup_steps=0)
    return Acting(given.learning_rate, given)


def voided(settings: TrainingSettings, choice: Chosen) -> Iterator[Voided]:
    """Each setting that is given and has no effect."""
    schedule = settings.schedule
    scheduler = schedule.lr_scheduler.partition(":")[0] not in ("constant", "adafactor")
    given: dict[str, object] = {"lr_scheduler": schedule.lr_scheduler} if scheduler else {}
    if choice.sets_its_rate:
        rate = (
            f"--learning_rate {schedule.learning_rate} is only the first rate shown: Adafactor sets its own, unless {_FIXED_RATE} is given"
        )
        yield Voided("learning_rate", rate)
        given |= {"lr_scheduler_args": " ".join(schedule.lr_scheduler_args)} if schedule.lr_scheduler_args else {}
        for name, value in given.items():
            yield Voided(name, f"--{name} {value} has no effect: Adafactor sets its own rate; choose constant, or add {_FIXED_RATE}")
        yield from _refused_by_adafactor(settings)
        return
    kind = settings.optimizer.optimizer_type.rpartition(".")[2]
    if kind.lower().startswith(_FIND_THEIR_RATE) and schedule.learning_rate < _LEAST_FACTOR:
        text = f"--learning_rate {schedule.learning_rate} multiplies the rate that {kind} finds by itself, so it learns little: 1 is usual"
        yield Voided("learning_rate", text)
    given |= {"lr_warmup_steps": schedule.lr_warmup_steps} if schedule.lr_warmup_steps else {}
    if choice.schedule_free:
        given |= {"lr_scheduler_type": schedule.lr_scheduler_type} if schedule.lr_scheduler_type else {}
        why = "schedule-free optimizers keep their rate; their warm-up is --optimizer_args warmup_steps=..."
    elif schedule.lr_scheduler_type:
        why = f"--lr_scheduler_type {schedule.lr_scheduler_type} is used instead"
    else:
        return
    for name, value in given.items():
        yield Voided(name, f"--{name} {value} has no effect: {why}")


def check_schedule(settings: ScheduleSettings, total: int) -> None:
    """UserError for a schedule that cannot be made for `total` steps; of ours, also where the rate is 0 in all of them."""
    ours = not settings.lr_scheduler_type
    if ours and not settings.learning_rate:
        raise UserError("--learning_rate is 0: nothing would be trained. 1e-4 to 2e-4 is usual for a LoRA")
    schedules.check(settings, total)
    if not ours or settings.lr_scheduler.startswith("adafactor"):
        return
    share = share_function(settings, total)
    if not any(share(step) for step in range(total)):
        raise UserError(nothing_trained(settings, total))


def nothing_trained(settings: ScheduleSettings, total: int, which: str = "the learning rate is") -> str:
    """A sentence about a rate that is 0 all along."""
    own, given = settings.lr_scheduler_type, f"--lr_scheduler {settings.lr_scheduler}, --lr_warmup_steps {settings.lr_warmup_steps}"
    return (
        f"{which} 0 all along ({counted(total, 'step')}): with {f'--lr_scheduler_type {own}' if own else given} "
        "nothing would be trained. Train longer, shorten the warm-up or choose another schedule"
    )


def _refused_by_adafactor(settings: TrainingSettings) -> Iterator[Voided]:
    acting = {"lr_scheduler_type": settings.schedule.lr_scheduler_type, "lr_warmup_steps": settings.schedule.lr_warmup_steps}
    given = [(name, f"--{name}") for name, value in acting.items() if value]
    pairs = [pair for pair in settings.network.network_args or () if pair.partition("=")[0].strip() == "loraplus_lr_ratio"]
    for name, words in (*given, *(("network_args", pair) for pair in pairs)):
        text = f"{words} cannot act on Adafactor, which sets its own rate: leave it out, or add {_FIXED_RATE}"
        yield Voided(name, text, rejected=True)
