"""Patterns choose the layers that musubi-tuner's do, and are checked before a run; expert settings arrive at the trainer."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from musubi_backend.weights.safetensors_file import read_header

GOLDEN = {"wan21_t2v": "wan", "wan21_i2v": "wan", "wan22_t2v": "wan", "hv_t2v": "hv", "framepack": "fp"}


@pytest.fixture(scope="module")
def host() -> Any:
    return SimpleNamespace(model_path=lambda key, name: Path("/loras", name), warnings=[])


def made(part: Any, host: Any, **changes: Any) -> Any:
    node = part("nodes.catalog").BY_NAME["ExpertSettings"]()
    return asyncio.run(node.run(host, **part("nodes.checks").complete(node.spec, changes)))


def models_of(shared: Path, stem: str) -> dict[str, str]:
    return {"architecture": GOLDEN[stem], "dit": str(shared / f"golden/dit/{stem}.dit.safetensors")}


@pytest.mark.parametrize("stem", GOLDEN)
def test_the_layers_shown_are_those_musubi_tuner_trains(part: Any, host: Any, shared: Path, stem: str) -> None:
    trained = {name.split(".")[0] for name in read_header(shared / f"golden/dit/{stem}.lora.safetensors").tensors}
    layers = made(part, host, models=models_of(shared, stem)).values[1].split("\n")
    assert {"lora_unet_" + layer.replace(".", "_") for layer in layers} == trained and len(layers) == len(trained)


def test_every_family_says_where_its_blocks_lie(part: Any) -> None:
    families = part("nodes.families").families()
    assert all(card.block_lists for card, _ in families) and {card.id for card, _ in families} <= set(GOLDEN.values())


def test_patterns_choose_layers_and_the_node_says_which_and_how_many(part: Any, host: Any, shared: Path) -> None:
    patterns = {"exclude_patterns": ".*ffn.*\n .*cross_attn.* \n\nno_layer", "include_patterns": r"blocks\.[01]\.ffn\.0"}
    result = made(part, host, models=models_of(shared, "wan21_t2v"), **patterns)
    assert result.text.splitlines() == [
        "10 of 20 layers are trained",
        "blocks.0-1.ffn.0", "blocks.0-1.self_attn.k", "blocks.0-1.self_attn.o", "blocks.0-1.self_attn.q", "blocks.0-1.self_attn.v",
    ]  # fmt: skip
    assert host.warnings == ["exclude_patterns: 'no_layer' matches no layer; whole names are compared, such as blocks.0.cross_attn.k"]
    listed = part("backend.musubi_backend.lora.selection").in_lines(["b.3.q", "b.0.q", "b.1.q", "b.7.v"])
    assert listed == ["b.0-1,3.q", "b.7.v"]


def test_patterns_that_leave_nothing_or_are_none_are_refused(part: Any, host: Any, shared: Path) -> None:
    with pytest.raises(part("backend.musubi_backend.errors").UserError, match="leave no layer"):
        made(part, host, models=models_of(shared, "hv_t2v"), exclude_patterns=".*")
    node = part("nodes.catalog").BY_NAME["ExpertSettings"]()
    wrong = {"exclude_patterns": "fine\n*ffn", "include_patterns": "(", "log_prefix": "../x", "log_tracker_name": "a/b"}
    problems = {problem.input: problem.text for problem in part("nodes.checks").check(node, host, wrong)}
    assert set(problems) == set(wrong) and "'*ffn' is no regular expression" in problems["exclude_patterns"]


def test_they_arrive_at_the_trainer_next_to_the_settings_of_the_network(part: Any, host: Any) -> None:
    chosen = {
        "exclude_patterns": r"blocks\.0\..*", "verbose": True, "base_lora_2": "a b.safetensors", "base_multiplier_2": 0.5,
        "log_with": "all", "log_prefix": "x-", "dynamo_backend": "INDUCTOR", "dynamo_mode": "max-autotune",
    }  # fmt: skip
    expert, layers = made(part, host, **chosen).values
    assert layers == "" and made(part, host).values[0] == {"dynamo_fullgraph": False, "dynamo_dynamic": False, "log_config": False}
    config = part("nodes.catalog").BY_NAME["LoRATrainingConfig"]()
    inputs = part("nodes.checks").complete(config.spec, {"rank_dropout": 0.1, "expert_settings": expert})
    (values,) = asyncio.run(config.run(host, **inputs)).values
    argv = part("backend.musubi_backend.options.argv").to_argv("wan_train_network", values)
    args = part("backend.musubi_backend.options.parser").read(
        part("backend.musubi_backend.options.registry").tool("wan_train_network"), argv
    )
    assert args.network_args == ["rank_dropout=0.1", r"exclude_patterns=['blocks\\.0\\..*']", "verbose=True"]
    assert (args.base_weights, args.base_weights_multiplier) == ([str(Path("/loras/a b.safetensors"))], [0.5])
    assert (args.log_with, args.log_prefix, args.dynamo_backend, args.dynamo_mode) == ("all", "x-", "INDUCTOR", "max-autotune")
