"""Learning rate schedules follow the recorded rates of musubi-tuner step by step; mistakes are named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from musubi_backend.errors import UserError
from musubi_backend.training import schedules
from musubi_backend.training.settings import ScheduleSettings


def settings(**values: Any) -> ScheduleSettings:
    defaults: dict[str, Any] = {
        "learning_rate": 1e-3,
        "lr_scheduler": "constant",
        "lr_warmup_steps": 0,
        "lr_decay_steps": 0,
        "lr_scheduler_num_cycles": 1,
        "lr_scheduler_power": 1,
        "lr_scheduler_timescale": None,
        "lr_scheduler_min_lr_ratio": None,
        "lr_scheduler_type": "",
        "lr_scheduler_args": None,
    }
    return ScheduleSettings(**{**defaults, **values})


def rates(args: ScheduleSettings, steps: int = 30) -> list[float]:
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=args.learning_rate)
    schedule = schedules.build(args, optimizer, steps, schedule_free=False)
    values = [schedule.get_last_lr()[0]]
    for _ in range(steps):
        optimizer.step()
        schedule.step()
        values.append(schedule.get_last_lr()[0])
    return values


def test_every_recorded_schedule_gives_the_recorded_rates(shared: Path) -> None:
    cases = json.loads((shared / "golden/timesteps/lr_schedulers.json").read_text())
    assert len(cases) >= 13
    for case in cases:
        np.testing.assert_allclose(rates(settings(**case["args"])), case["lrs"], rtol=1e-12, atol=1e-18, err_msg=str(case["args"]))


def test_warmup_as_steps_share_or_percentage_is_the_same() -> None:
    wanted = rates(settings(lr_scheduler="linear", lr_warmup_steps=3))
    assert wanted[1] == pytest.approx(1e-3 / 3)
    for value in (0.1, "10%", "3", "0.1"):
        assert rates(settings(lr_scheduler="linear", lr_warmup_steps=value)) == wanted


def test_warmup_cosine_starts_above_zero_and_reaches_the_floor() -> None:
    values = rates(settings(lr_scheduler="cosine_warmup_with_min_lr", lr_warmup_steps=5, lr_scheduler_min_lr_ratio=0.1))
    assert values[0] == pytest.approx(2e-4) and values[4] == pytest.approx(1e-3) and values[29] == pytest.approx(1e-4)


def test_any_scheduler_class_can_be_named() -> None:
    values = rates(settings(lr_scheduler_type="StepLR", lr_scheduler_args=["step_size=10", "gamma=0.5"]))
    assert values[9] == 1e-3 and values[10] == 5e-4
    assert rates(settings(lr_scheduler_type="torch.optim.lr_scheduler.StepLR", lr_scheduler_args=["step_size=10", "gamma=0.5"])) == values


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"lr_scheduler": "cosin"}, "did you mean .cosine."),
        ({"lr_warmup_steps": 5}, "constant_with_warmup"),
        ({"lr_scheduler": "linear", "lr_warmup_steps": "ten"}, "--lr_warmup_steps"),
        ({"lr_scheduler": "linear", "lr_scheduler_args": ["gamma=1"]}, "gamma"),
        ({"lr_scheduler": "cosine_with_min_lr"}, "--lr_scheduler_min_lr_ratio"),
        ({"lr_scheduler": "piecewise_constant"}, "step_rules"),
        ({"lr_scheduler": "warmup_stable_decay", "lr_warmup_steps": 20, "lr_decay_steps": 20}, "longer than the training"),
        ({"lr_scheduler": "polynomial", "lr_scheduler_args": ["lr_end=1"]}, "--learning_rate"),
        ({"lr_scheduler": "adafactor:1e-3"}, "--optimizer_type adafactor"),
        ({"lr_scheduler_type": "StepLr"}, "did you mean .StepLR."),
        ({"lr_scheduler_type": "StepLR"}, "step_size"),
        ({"lr_scheduler_type": "StepLR", "lr_scheduler_args": ["step_size"]}, "key=value"),
        ({"lr_scheduler_type": "nowhere.Schedule"}, "nowhere"),
    ],
)
def test_mistakes_are_named(values: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        rates(settings(**values))


def test_a_least_rate_given_as_such_is_a_share_of_the_learning_rate() -> None:
    values = rates(settings(lr_scheduler="cosine_with_min_lr", lr_scheduler_args=["min_lr=1e-4"]))
    # half a wave over 30 steps, between 1e-3 and 1e-4
    assert [values[0], values[15], values[30]] == pytest.approx([1e-3, 5.5e-4, 1e-4])
