"""Steps in which module_dropout leaves out every LoRA module: they count, change nothing, and end nothing."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch

ONE_LAYER = ["module_dropout=0.7", "exclude_patterns=['.*']", "include_patterns=['blocks.0.ffn.0']"]


@pytest.mark.parametrize("precision", ["no", "fp16"], ids=["plain", "with a scaler"])
@pytest.mark.parametrize("flags", [(), ("--gradient_checkpointing",)], ids=["kept", "recomputed"])
def test_a_step_without_any_lora_module_changes_nothing_and_the_others_train(project: Any, precision: str, flags: tuple[str, ...]) -> None:
    values = {"network_args": ONE_LAYER, "mixed_precision": precision, "max_train_steps": 8, "save_every_n_steps": 1}
    project.train("dropped", *flags, optimizer_args=["weight_decay=0.5"], **values)
    steps = [project.lora("dropped", f"cat-step{step:08d}") for step in range(1, 9)]
    moved = [any(not torch.equal(before[key], after[key]) for key in before) for before, after in pairwise(steps)]
    assert True in moved and False in moved, moved


def test_a_window_counts_whichever_of_its_batches_has_a_gradient(project: Any) -> None:
    values = {"network_args": ["module_dropout=0.9", *ONE_LAYER[1:]], "max_train_steps": 6, "gradient_accumulation_steps": 4}
    out = project.train("windows", "--save_state", save_every_n_steps=1, **values)
    steps = [project.lora("windows", f"cat-step{step:08d}") for step in range(1, 7)]
    assert any(not torch.equal(steps[0][key], steps[-1][key]) for key in steps[0])
    project.train("resumed", resume=out / "cat-step00000003-state", **values)
    resumed, whole = project.lora("resumed"), project.lora("windows")
    assert all(torch.equal(resumed[key], whole[key]) for key in whole)
