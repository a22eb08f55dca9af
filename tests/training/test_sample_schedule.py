"""When samples are due, and what a state gives back: rates, moments, scale and losses in numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from musubi_backend.architectures import protocol
from musubi_backend.training import saved_states, state
from musubi_backend.training.samples import Samples
from musubi_backend.training.settings import SampleSettings, SavingSettings
from torch import nn


def samples(folder: Path, **changes: Any) -> Samples:
    made = Samples(SampleSettings(**changes), SavingSettings(), protocol.load("wan"))
    made._prompts = [None]  # type: ignore[list-item]
    return made


def test_samples_are_due_by_step_by_epoch_and_at_first(tmp_path: Path) -> None:
    by_step = samples(tmp_path, sample_every_n_steps=3)
    assert [step for step in range(10) if by_step.due(step)] == [3, 6, 9] and not by_step.due(3, 3)
    by_epoch = samples(tmp_path, sample_every_n_epochs=2)
    assert [epoch for epoch in range(1, 7) if by_epoch.due(5, epoch)] == [2, 4, 6] and not by_epoch.due(2)
    first = samples(tmp_path, sample_at_first=True)
    assert [step for step in range(5) if first.due(step)] == [0]
    first._prompts = []
    assert not first.due(0), "without prompts there is nothing to make"


@pytest.mark.parametrize(
    ("times", "late"),
    [
        ({"sample_every_n_steps": 10}, False), ({"sample_every_n_steps": 11}, True), ({"sample_every_n_epochs": 3}, True),
        ({"sample_every_n_steps": 11, "sample_every_n_epochs": 2}, False), ({"sample_every_n_steps": 11, "sample_at_first": True}, False),
    ],
)  # fmt: skip
def test_a_training_that_ends_before_its_samples_is_noticed(tmp_path: Path, times: dict[str, Any], late: bool) -> None:
    made = samples(tmp_path, **times)
    assert made.come_late(10, 2) is late
    made._prompts = []
    assert not made.come_late(10, 2)


def live(total: int) -> state.TrainingState:
    network = nn.Linear(1, 1, bias=False)
    nn.init.ones_(network.weight)
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.1, weight_decay=0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / total)
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
    return state.TrainingState(network, optimizer, schedule, scaler, saved_states.Position(), [], [], 7)


def test_a_restored_run_has_the_moments_the_scale_and_the_rate_of_its_own_schedule_at_that_step(tmp_path: Path) -> None:
    first = live(total=4)
    assert first.scaler.scale(torch.ones(1)).item() == 64
    for slope in (1.0, 3.0):
        first.network.weight.grad = torch.full((1, 1), slope)  # type: ignore[union-attr]
        first.optimizer.step()
        first.schedule.step()
    first.scaler.update(32.0)
    first.position, first.losses, first.history = saved_states.Position(2, 0, 2, 2), [0.5], [0.25, 0.75]
    first.save(tmp_path / "cat-state")
    saved = saved_states.read(tmp_path / "cat-state")
    assert (saved.losses, saved.history, saved.position, saved.seed) == ([0.5], [0.25, 0.75], saved_states.Position(2, 0, 2, 2), 7)
    longer = live(total=8)
    longer.restore(saved)
    assert longer.network.weight.item() == first.network.weight.item() != 1  # type: ignore[union-attr]
    moments = longer.optimizer.state[longer.network.weight]  # type: ignore[index]
    # 0.1 * 3 + 0.9 * 0.1 * 1, and 0.001 * 9 + 0.999 * 0.001 * 1
    assert moments["step"] == 2 and moments["exp_avg"].item() == pytest.approx(0.39)
    assert moments["exp_avg_sq"].item() == pytest.approx(0.009999)
    assert longer.optimizer.param_groups[0]["lr"] == pytest.approx(0.1 * (1 - 2 / 8)), "of the longer schedule, at step 2"
    assert longer.schedule.get_last_lr() == pytest.approx([0.075]) and longer.scaler.get_scale() == 32
