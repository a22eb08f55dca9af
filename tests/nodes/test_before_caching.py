"""Settings of several nodes that contradict each other are rejected by the trainer before anything is cached for it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from musubi_backend.weights.safetensors_file import save_atomic

WIDGETS: dict[str, tuple[dict[str, Any], str]] = {
    "what a trainer begins with": ({"dim_from_weights": True}, "dim_from_weights needs a LoRA"),
    "a rate for going on": ({"resume_learning_rate": 1e-5}, "resume_learning_rate is for continuing"),
    "two ways to offload": (
        {"models_task": "t2v-A14B", "offload_inactive_dit": True, "config_blocks_to_swap": 2},
        "offload_inactive_dit and blocks_to_swap exclude each other",
    ),
    "samples without a VAE": (
        {"sampling_sample_prompts": "a dog", "sampling_sample_every_n_steps": 5, "models_vae": None},
        "vae is required to make samples while training",
    ),
    "a setting of another family": ({"config_no_such_thing": 1}, "has no such setting"),
    "a schedule longer than the run": ({"optimizer_lr_scheduler": "rex", "optimizer_lr_warmup_steps": 2000}, "longer than the training"),
}


def reject(bench: Any, part: Any, changes: dict[str, Any]) -> str:
    """What the trainer says while its caches are not there; empty where nothing."""
    groups: dict[str, dict[str, Any]] = {"config": {}, "optimizer": {"optimizer_type": "adamw"}, "sampling": {}, "models": {}}
    own: dict[str, Any] = {}
    for name, value in changes.items():
        group, _, widget = name.partition("_")
        groups.get(group, own)[widget if group in groups else name] = value
    other = groups["config"].pop("no_such_thing", None)
    config = bench.node("LoRATrainingConfig", **groups["config"]) | ({} if other is None else {"no_such_thing": other})
    save_atomic({"blocks.0.self_attn.q.weight": torch.zeros(4, 4, dtype=torch.bfloat16)}, bench.dit, {})
    models = {
        "architecture": "wan",
        "task": "t2v-1.3B",
        "dit": str(bench.dit),
        "vae": str(bench.vae),
        "t5": str(bench.vae),
        **groups["models"],
    }
    if groups["models"].get("task") == "t2v-A14B":
        models["dit_high_noise"] = str(bench.dit)
    inputs = {
        "models": {name: value for name, value in models.items() if value is not None},
        "lora_config": config,
        "optimizer": bench.node("OptimizerConfig", **groups["optimizer"]),
        "sampling": bench.node("SamplingConfig", **groups["sampling"]),
        **own,
    }
    node = part("nodes.catalog").BY_NAME["WanLoRATrainer"]()
    try:
        part("nodes.checks").prechecked(node, bench.host, inputs)
    except part("backend.musubi_backend.errors").UserError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("kind", WIDGETS)
def test_a_contradiction_is_one_sentence_in_the_words_of_widgets(bench: Any, part: Any, kind: str) -> None:
    changes, words = WIDGETS[kind]
    said = reject(bench, part, changes)
    assert words in said and len(said.splitlines()) == 1 and "--" not in said, said


def test_what_goes_together_is_not_rejected(bench: Any, part: Any) -> None:
    assert (
        reject(
            bench,
            part,
            {"config_compile": True, "config_blocks_to_swap": 2, "sampling_sample_prompts": "a dog", "sampling_sample_at_first": True},
        )
        == ""
    )


@pytest.mark.parametrize("folder", ["lib/python3.11/site-packages", "Lib/site-packages"])
def test_a_package_that_is_not_installed_is_named(bench: Any, part: Any, tmp_path: Path, folder: str) -> None:
    packages = tmp_path / "venv" / folder
    (packages / "torch").mkdir(parents=True)
    (tmp_path / "venv" / "bin").mkdir()
    (bench.home / "config.json").write_text(json.dumps({"interpreter": str(tmp_path / "venv" / "bin" / "python")}))
    wanted = {"optimizer_optimizer_type": "adamw8bit", "config_attention": "flash_attn"}
    assert [line.split(" ")[:2] for line in reject(bench, part, wanted).splitlines()] == [
        ["optimizer_type:", "adamw8bit"], ["attention:", "flash_attn"],
    ]  # fmt: skip
    for name in ("bitsandbytes", "flash_attn"):
        (packages / name).mkdir()
    assert reject(bench, part, wanted) == ""
    expert = bench.node("ExpertSettings", log_with="wandb")
    said = reject(bench, part, {"config_expert_settings": expert, "optimizer_optimizer_type": "Prodigy", "optimizer_learning_rate": 1.0})
    assert [line.split(", or")[0] for line in said.splitlines()] == [
        "optimizer_type: Prodigy needs the package pytorch_optimizer: run install.py --with optimizers",
        "log_with: wandb needs the package wandb: run install.py --with wandb",
    ]
