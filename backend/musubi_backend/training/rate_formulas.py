"""The formulas of learning rate schedules, under the names of `--lr_scheduler`: each is a small function step -> share of the base rate.

They are those of transformers and diffusers (whose import alone takes seconds) and REX (Chen et al. 2021). A step is one optimizer step; in
multi-process training it still counts once, so warm-up lengths do not depend on the number of GPUs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from ..counted import counted
from ..errors import UserError
from ..suggest import did_you_mean
from .classes import keyword_arguments
from .settings import ScheduleSettings

ARGUMENTS = "--lr_scheduler_args"
Share = Callable[[int], float]


def share_function(settings: ScheduleSettings, total: int) -> Share:
    """step -> factor on the base learning rate, for `--lr_scheduler` and its arguments over `total` steps. UserError for those unknown."""
    name = settings.lr_scheduler.lower()
    if name not in _SCHEDULES:
        raise UserError(
            f"--lr_scheduler {settings.lr_scheduler!r} is unknown{did_you_mean(name, _SCHEDULES)}; known: {', '.join(sorted(_SCHEDULES))}"
        )
    options = keyword_arguments(settings.lr_scheduler_args, ARGUMENTS)
    make, allowed = _SCHEDULES[name]
    unknown = sorted(set(options) - set(allowed))
    if unknown:
        takes = f"it takes {', '.join(allowed)}" if allowed else "it takes none"
        raise UserError(f"{ARGUMENTS} {unknown[0]!r} does not belong to the schedule {name}; {takes}")
    warmup = resolve_steps(settings.lr_warmup_steps, total, "--lr_warmup_steps")
    return make(settings, warmup, total, options)


def resolve_steps(value: int | float | str | None, total: int, flag: str) -> int:
    """A number of steps given as steps (int), a share of the run (float) or a percentage ("10%")."""
    if isinstance(value, str):
        try:
            value = float(value[:-1]) / 100 if value.endswith("%") else float(value)
        except ValueError:
            raise UserError(f'{flag} {value!r}: give a number of steps, a share such as 0.1, or a percentage such as "10%"') from None
        value = int(value) if value >= 1 and value.is_integer() else value
    if value is None:
        return 0
    steps = int(value * total) if isinstance(value, float) else value
    if steps < 0:
        raise UserError(f"{flag} {value}: must be 0 or more")
    return steps


def _warmed(step: int, warmup: int) -> float | None:
    """Share while warming up from 0, None afterwards."""
    return step / max(1, warmup) if step < warmup else None


def _constant(settings: ScheduleSettings, warmup: int, total: int, options: dict[str, Any]) -> Share:
    if warmup:
        raise UserError("--lr_scheduler constant has no warm-up: remove --lr_warmup_steps or use constant_with_warmup")
    return lambda step: 1.0


def _constant_with_warmup(settings: ScheduleSettings, warmup: int, total: int, options: dict[str, Any]) -> Share:
    def share(step: int) -> float:
        warmed = _warmed(step, warmup)
        return 1.0 if warmed is None else warmed

    return share


def _linear(settings: ScheduleSettings, warmup: int, total: int, options: dict[str, Any]) -> Share:
    def share(step: int) -> float:
        warmed = _warmed(step, warmup)
        return max(0.0, (total - step) / max(1, total - warmup)) if warmed is None else warmed

    return share


def _cosine(settings: ScheduleSettings, warmup: int, total: int, options: dict[str, Any]) -> Share:
    return _cosine_to(0.0, warmup, total, options.get("num_cycles", 0.5))


def _cosine_with_min_lr(settings: ScheduleSettings, warmup: int, total: int, options: dict[str, Any]) -> Share:
    return _cosine_to(_floor_share(settings, options), warmup, total, settings.lr_scheduler_num_cycles / 2)


def _floor_share(settings: ScheduleSettings, options: dict[str, Any]) -> float:
    floor = settings.lr_scheduler_min_lr_ratio
    if (floor is None) == ("min_lr" not in options):
        raise UserError(
            f"--lr_scheduler {settings.lr_scheduler} needs --lr_scheduler_min_lr_ratio or min_lr in --lr_scheduler_args, one of the two"
        )
    return float(floor) if floor is not None else options["min_lr"] / settings.learning_rate


def _cosine_to(floor: float, warmup: int, total: int, cycles: float) -> Share:
    def share(step: int) -> float:
        warmed = _warmed(step, warmup)
        if warmed is not None:
            return warmed
        progress = (step - warmup) / max(1, total - warmup)
        wave = 0.5 * (1.0 + math.cos(math.pi * cycles * 2.0 * progress))
        return max(0.0, wave * (1 - floor) + floor)

    return share


def _cosine_warmup_with_min_lr(settings: ScheduleSettings, warmup: int, total: int, options: dict[str, Any]) -> Share:
    floor, start = _floor_share(settings, options), options.get("warmup_lr_rate")

    def share(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup if start is None else start + (1 - start) * step / max(1, warmup - 1)
        progress = (step - warmup + 1) / max(1, total - warmup)
        wave = 0.5 * (1.0 + math.cos(math.pi * progress))
        return max(0.0, wave * (1 - floor) + floor)

    return share


def _cosine_with_restarts(settings: ScheduleSettings, warmup: int, total: int, options: dict[str, Any]) -> Share:
    def share(step: int) -> float:
        warmed = _warmed(step, warmup)
        if warmed is not None:
            return warmed
        progress = (step - warmup) / max(1, total - warmup)
        if progress >= 1.0:
            return 0.0
        return max(0.0, 0.5 * (1.0 + math.cos(math.pi * ((settings.lr_scheduler_num_cycles * progress) % 1.0))))

    return share


def _polynomial(settings: ScheduleSettings, warmup: int, total: int, options: dict[str, Any]) -> Share:
    end = options.get("lr_end", 1e-7) / settings.learning_rate
    if end >= 1:
        raise UserError(
            f"--lr_scheduler polynomial ends at {options.get('lr_end', 1e-7)}, which is not below --learning_rate {settings.learning_rate}"
        )

    def share(step: int) -> float:
        warmed = _warmed(step, warmup)
        if warmed is not None:
            return warmed
        remaining = max(0.0, 1 - (step - warmup) / max(1, total - warmup))
        share: float = (1 - end) * remaining**settings.lr_scheduler_power + end
        return share

    return share


def _inverse_sqrt(settings: ScheduleSettings, warmup: int, total: int, options: dict[str, Any]) -> Share:
    scale = settings.lr_scheduler_timescale or warmup or 10_000

    def share(step: int) -> float:
        warmed = _warmed(step, warmup)
        return 1.0 / math.sqrt((step + scale - warmup) / scale) if warmed is None else warmed

    return share


_RAMPS: dict[str, Callable[[float], float]] = {
    "linear": lambda progress: progress,
    "cosine": lambda progress: 0.5 * (1.0 - math.cos(math.pi * progress)),
    "1-sqrt": lambda progress: 1.0 - math.sqrt(1.0 - progress),
}


def _warmup_stable_decay(settings: ScheduleSettings, warmup: int, total: int, options: dict[str, Any]) -> Share:
    decay = resolve_steps(settings.lr_decay_steps, total, "--lr_decay_steps")
    if warmup + decay > total:
        raise UserError(
            f"--lr_warmup_steps ({warmup}) and --lr_decay_steps ({decay}) together are longer than the training ({counted(total, 'step')})"
        )
    floor = settings.lr_scheduler_min_lr_ratio or 0.0
    rise, fall = options.get("warmup_type", "linear"), options.get("decay_type", "cosine")
    for key, value in (("warmup_type", rise), ("decay_type", fall)):
        if value not in _RAMPS:
            raise UserError(f"--lr_scheduler_args {key}={value!r} is unknown; known: {', '.join(_RAMPS)}")
    cycles = settings.lr_scheduler_num_cycles

    def share(step: int) -> float:
        if step < warmup:
            return max(0.0, _RAMPS[rise](step / warmup) * (1 - floor) + floor)
        if step < total - decay:
            return 1.0
        if step >= total:
            return floor
        progress = (step - (total - decay)) / decay
        if fall == "cosine":
            left = 0.5 * (1.0 + math.cos(math.pi * cycles * progress))
        elif fall == "linear":
            left = 1.0 - progress
        else:
            left = 1.0 - math.sqrt(progress)
        return max(0.0, left * (1 - floor) + floor)

    return share


def _rex(settings: ScheduleSettings, warmup: int, total: int, options: dict[str, Any]) -> Share:
    if warmup > total:
        raise UserError(f"--lr_warmup_steps ({warmup}) is longer than the training ({counted(total, 'step')})")
    floor = settings.lr_scheduler_min_lr_ratio if settings.lr_scheduler_min_lr_ratio is not None else 0.01
    alpha, beta = options.get("rex_alpha", 0.1), options.get("rex_beta", 0.9)
    remaining = total - warmup

    def share(step: int) -> float:
        if warmup == 1 and step == 1:
            return floor
        if warmup > 1 and 1 <= step <= warmup - 1:
            return floor + (1 - floor) * (step - 1) / (warmup - 1)
        after = step - warmup
        if after >= remaining or after == -1 or remaining <= 0:
            return floor
        # step 0 of a long warm-up lands on the curve, wrapped around: musubi-tuner's first rate, kept for equal runs
        z = (remaining - after % remaining) / remaining
        share: float = floor + (1 - floor) * z / (alpha + beta * z)
        return share

    return share


def _piecewise_constant(settings: ScheduleSettings, warmup: int, total: int, options: dict[str, Any]) -> Share:
    rules = options.get("step_rules", "")
    try:
        *pieces, last = str(rules).split(",")
        until = sorted((int(steps), float(share)) for share, steps in (piece.split(":") for piece in pieces))
        final = float(last)
    except ValueError:
        raise UserError(
            f'--lr_scheduler piecewise_constant: step_rules={rules!r} is not "share:step,...,share"; example: --lr_scheduler_args '
            'step_rules="1:100,0.1:200,0.01"'
        ) from None

    return lambda step: next((share for end, share in until if step < end), final)


_SCHEDULES: dict[str, tuple[Callable[[ScheduleSettings, int, int, dict[str, Any]], Share], tuple[str, ...]]] = {
    "constant": (_constant, ()),
    "constant_with_warmup": (_constant_with_warmup, ()),
    "linear": (_linear, ()),
    "cosine": (_cosine, ("num_cycles",)),
    "cosine_with_restarts": (_cosine_with_restarts, ()),
    "cosine_with_min_lr": (_cosine_with_min_lr, ("min_lr",)),
    "cosine_warmup_with_min_lr": (_cosine_warmup_with_min_lr, ("min_lr", "warmup_lr_rate")),
    "polynomial": (_polynomial, ("lr_end",)),
    "inverse_sqrt": (_inverse_sqrt, ()),
    "warmup_stable_decay": (_warmup_stable_decay, ("warmup_type", "decay_type")),
    "rex": (_rex, ("rex_alpha", "rex_beta")),
    "piecewise_constant": (_piecewise_constant, ("step_rules",)),
}
