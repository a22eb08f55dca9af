"""The two experts of Wan2.2 in the trainer node: which files and noise levels each choice means, also besides samples."""

from __future__ import annotations

from typing import Any

import pytest

LOW_FILE, HIGH_FILE = "/m/low.safetensors", "/m/high.safetensors"


@pytest.fixture
def values(part: Any) -> Any:
    """A function: what a choice of the trainer's widgets comes to as options."""

    def chosen(task: str = "t2v-A14B", prompts: bool = True, high: str | None = HIGH_FILE, **widgets: Any) -> Any:
        node = part("nodes.catalog").BY_NAME["WanLoRATrainer"]()
        models = {"architecture": "wan", "task": task, "dit": LOW_FILE, "vae": "v", "t5": "t", **({"dit_high_noise": high} if high else {})}
        sampling = {"settings": {"min_timestep": 100}, "prompts": [{"prompt": "x"}] if prompts else []}
        sockets = {"latents": {"dataset": {"toml": "d", "datasets": []}}, "text": {}, "lora_config": {}, "optimizer": {}}
        given = {"models": models, "sampling": sampling, **sockets, **widgets}
        return node.values(part("nodes.checks").complete(node.spec, given))

    return chosen


@pytest.mark.parametrize("prompts", [True, False])
@pytest.mark.parametrize(
    ("experts", "dit", "high", "levels"),
    [("both", LOW_FILE, HIGH_FILE, (100, None)), ("low noise", LOW_FILE, None, (0, 875)), ("high noise", HIGH_FILE, None, (875, 1000))],
)
def test_each_choice_fills_in_its_files_and_noise_levels(
    values: Any, prompts: bool, experts: str, dit: str, high: str | None, levels: tuple[int, int | None]
) -> None:
    made = values(experts=experts, prompts=prompts)
    assert made["dit"] == dit
    assert made.get("dit_high_noise") == high
    assert (made.get("min_timestep"), made.get("max_timestep")) == levels
    assert ("vae" in made) is prompts


def test_the_boundary_is_the_tasks_own_or_the_widgets(values: Any) -> None:
    assert values("i2v-A14B", experts="low noise")["max_timestep"] == 900
    assert values(experts="high noise", timestep_boundary=800)["min_timestep"] == 800
    assert values(experts="both", timestep_boundary=800, lora_per_expert=True)["timestep_boundary"] == 800


def test_other_models_know_nothing_of_experts(values: Any) -> None:
    made = values("t2v-14B", high=None, experts="high noise", offload_inactive_dit=True)
    assert made["dit"] == LOW_FILE
    assert not {"dit_high_noise", "offload_inactive_dit", "timestep_boundary"} & set(made)


def test_what_does_not_go_together_is_rejected(values: Any, part: Any) -> None:
    error = part("backend.musubi_backend.errors").UserError
    for experts in ("both", "high noise"):
        with pytest.raises(error, match="needs the high-noise transformer"):
            values(high=None, experts=experts)
    with pytest.raises(error, match="lora_per_expert is for training both"):
        values(experts="low noise", lora_per_expert=True)
    assert values(high=None, experts="low noise")["dit"] == LOW_FILE
