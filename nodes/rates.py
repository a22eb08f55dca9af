"""Optimizer and schedule are judged when a prompt is queued, by the rule that a training begins with (`training/voided.py`), and drawn."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ..backend.musubi_backend.errors import UserError
from ..backend.musubi_backend.optimizers import registry
from ..backend.musubi_backend.options.option import TRAIN
from ..backend.musubi_backend.options.registry import options_for
from ..backend.musubi_backend.options.values import default_of
from ..backend.musubi_backend.training.classes import keyword_arguments
from ..backend.musubi_backend.training.rate_formulas import share_function
from ..backend.musubi_backend.training.settings import TrainingSettings
from ..backend.musubi_backend.training.voided import check_schedule, in_effect, keeps_its_rate, sets_its_rate, voided
from .families import any_tool
from .jobs.wording import in_widgets
from .spec import Problem

_TRAIN = any_tool(TRAIN)
_ANY_LENGTH = 10**9


@dataclass(frozen=True)
class _Optimizer:
    sets_its_rate: bool
    schedule_free: bool


def problems(values: Mapping[str, Any], steps: int | None = None) -> Iterator[Problem]:
    """What a training would reject of its optimizer, rate and schedule, and what would have no effect, each at its widget. The rate itself
    stays without effect in silence: its widget has no value that means none.

    values: option name -> value, where it is not the default. steps: of the whole training, where they are known.
    """
    settings = _settings(values)
    try:
        optimizer = _optimizer(settings)
    except UserError as error:
        yield Problem("optimizer_args", in_widgets(_TRAIN, str(error)))
        return
    for one in voided(settings, optimizer):
        if one.setting != "learning_rate":
            yield Problem(one.setting, in_widgets(_TRAIN, one.text))
    if optimizer.sets_its_rate:
        return
    try:
        check_schedule(settings.schedule, steps or _ANY_LENGTH)
    except UserError as error:
        # the setting that a message names last is the one to change
        named = [name for name in re.findall(r"--(\w+)", str(error)) if name != "lr_scheduler_args"]
        yield Problem(named[-1], in_widgets(_TRAIN, str(error)))


def curve(values: Mapping[str, Any], steps: int, points: int = 200) -> tuple[list[tuple[int, float]], str]:
    """The learning rate at up to `points` steps from the first to the last one, and a sentence where another one acts. UserError where
    there would be none."""
    settings = _settings(values)
    optimizer = _optimizer(settings)
    acting = in_effect(settings, optimizer)
    if acting.learning_rate is None:
        return [], "this optimizer sets its own learning rate"
    share = share_function(acting.schedule, steps)
    count = min(points, steps)
    chosen = sorted({round(index * (steps - 1) / max(1, count - 1)) for index in range(count)})
    note = "schedule-free: the rate stays" if optimizer.schedule_free else ""
    return [(step + 1, acting.learning_rate * share(step)) for step in chosen], note


def _settings(values: Mapping[str, Any]) -> TrainingSettings:
    return TrainingSettings.read({name: default_of(option) for name, option in options_for(_TRAIN).items()} | dict(values))


def _optimizer(settings: TrainingSettings) -> _Optimizer:
    """UserError for an optimizer that is none, and arguments that it does not have."""
    kind = settings.optimizer.optimizer_type
    arguments = keyword_arguments(settings.optimizer.optimizer_args, "--optimizer_args")
    entry = registry.find(kind)
    if entry is not None:
        registry.check_values(entry, arguments)
    return _Optimizer(sets_its_rate(kind, arguments), keeps_its_rate(kind, arguments))
