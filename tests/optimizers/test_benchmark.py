"""The tasks that optimizers are compared on can be learned, from a loss of 1."""

from __future__ import annotations

import pytest
from musubi_backend.optimizers import registry

from benchmarks.optimizer_tasks import TASKS
from benchmarks.optimizers import train


@pytest.mark.parametrize("what", TASKS)
def test_a_task_begins_at_one_and_is_learned(what: str) -> None:
    task = TASKS[what][0](3)
    assert task.held_out() == pytest.approx(1.0)
    adamw = registry.find("AdamW")
    assert adamw is not None
    training = train(adamw, 1e-2, task, 20)
    assert training.loss < 0.95 and training.reached(0.95) <= 20
