"""Optimizer and schedule are judged when a prompt is queued, by the rule that a training begins with (`training/voided.py`)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ..backend.musubi_backend.errors import UserError
from ..backend.musubi_backend.options.option import TRAIN
from ..backend.musubi_backend.options.registry import options_for
from ..backend.musubi_backend.options.values import default_of
from ..backend.musubi_backend.training.classes import keyword_arguments
from ..backend.musubi_backend.training.settings import TrainingSettings
from ..backend.musubi_backend.training.voided import check_schedule, sets_its_rate, voided
from .families import any_tool
from .jobs.wording import in_widgets
from .spec import Problem

_TRAIN = any_tool(TRAIN)
_ANY_LENGTH = 10**9


@dataclass(frozen=True)
class _Optimizer:
    sets_its_rate: bool
    schedule_free: bool = False


def problems(values: Mapping[str, Any], steps: int | None = None) -> Iterator[Problem]:
    """What a training would reject of its rate and schedule, and what would have no effect, each at its widget. The rate itself stays
    without effect in silence: its widget has no value that means none.

    values: option name -> value, where it is not the default. steps: of the whole training, where they are known.
    """
    settings = TrainingSettings.read({name: default_of(option) for name, option in options_for(_TRAIN).items()} | dict(values))
    chosen = settings.optimizer
    try:
        optimizer = _Optimizer(sets_its_rate(chosen.optimizer_type, keyword_arguments(chosen.optimizer_args, "--optimizer_args")))
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
