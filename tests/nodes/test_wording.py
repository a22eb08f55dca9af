"""Errors of jobs name widgets: whatever option a tool's message names, a person finds that name on a node."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from musubi_backend.options.option import (
    CACHE_LATENTS,
    CACHE_TEXT,
    CAPTION,
    GENERATE,
    LORA_COMBINE,
    LORA_CONVERT,
    LORA_EMA,
    LORA_EXTRACT,
    LORA_MERGE,
    TRAIN,
)
from musubi_backend.options.registry import tools

ONLY_ON_A_TERMINAL = {  # no node sets them
    TRAIN: "base_weights base_weights_multiplier block_swap_h2d_only block_swap_ring_size compile_backend compile_cache_size_limit "
    "compile_dynamic compile_fullgraph compile_mode config_file cuda_cudnn_benchmark ddp_gradient_as_bucket_view ddp_static_graph "
    "ddp_timeout disable_numpy_memmap dit_dtype dynamo_backend dynamo_dynamic dynamo_fullgraph dynamo_mode force_v2_1_time_embedding "
    "img_in_txt_in_offloading log_config log_prefix log_tracker_name log_with lr_scheduler_args lr_scheduler_timescale "
    "lr_scheduler_type metadata_arch metadata_author metadata_description metadata_license metadata_reso metadata_tags metadata_title "
    "show_timesteps skip_mismatched wandb_api_key wandb_run_name",
    GENERATE: "ckpt_dir compile_args compile_backend compile_cache_size_limit compile_dynamic compile_fullgraph compile_mode "
    "disable_numpy_memmap exclude_patterns force_v2_1_time_embedding fp8_fast img_in_txt_in_offloading include_patterns interactive "
    "latent_path lycoris save_merged_model split_uncond",
    CACHE_LATENTS: "console_back console_num_images console_width debug_mode",
    CAPTION: "tokenizer",
}
SET_BY_NODES = {  # not by a widget, but by what the node knows
    TRAIN: "dit_in_channels logging_dir no_metadata output_dir network_args",
    GENERATE: "dit_in_channels no_metadata output_type save_path",
    CACHE_LATENTS: "i2v last_frame",
    LORA_EMA: "no_sort",
    LORA_MERGE: "dit_in_channels",
}
CHECKED = (CACHE_LATENTS, CACHE_TEXT, TRAIN, GENERATE, CAPTION, LORA_EMA, LORA_CONVERT, LORA_MERGE, LORA_COMBINE, LORA_EXTRACT)


@pytest.mark.parametrize("tool", [tool for tool in tools().values() if tool.verb in CHECKED], ids=lambda tool: tool.name)
def test_every_flag_becomes_the_name_of_a_widget(part: Any, tool: Any) -> None:
    nodes = part("nodes.catalog").NODES
    widgets = {entry.name for node in nodes for entry in node.spec.inputs} | {"width and height"}
    widgets |= {node.spec.display_name for node in nodes}
    others = {"cpu_threads", *ONLY_ON_A_TERMINAL.get(tool.verb, "").split(), *SET_BY_NODES.get(tool.verb, "").split()}
    in_widgets = part("nodes.jobs.wording").in_widgets
    for option in tool.options:
        if option.unsupported or option.name in others:
            continue
        said = in_widgets(tool.name, f"{option.flag} is wrong")
        assert said.removesuffix(" is wrong") in widgets, option.flag


def test_options_with_another_name_at_a_node_are_known(part: Any) -> None:
    """A widget says itself which option it sets."""
    in_widgets = part("nodes.jobs.wording").in_widgets
    for node, tool in (("LoRATrainingConfig", "wan_train_network"), ("WanVideoGenerator", "wan_generate_video")):
        spec = next(found.spec for found in part("nodes.catalog").NODES if found.__name__ == node)
        for entry in spec.inputs:
            if entry.option:
                assert in_widgets(tool, f"--{entry.option}: no") == f"{entry.name}: no"


def test_arguments_of_the_network_are_widgets_of_their_own(part: Any) -> None:
    said = part("nodes.jobs.wording").in_widgets("wan_train_network", "use --network_args rank_dropout=... or module_dropout=...")
    assert said == "use rank_dropout=... or module_dropout=..."


@pytest.mark.parametrize("text", ["--colour is unknown", "a--seed", "---seed", "git log --oneline"])
def test_what_is_no_flag_of_the_tool_stays(part: Any, text: str) -> None:
    assert part("nodes.jobs.wording").in_widgets("wan_train_network", text) == text


def test_a_state_that_is_none_is_at_its_widget(part: Any, tmp_path: Path) -> None:
    (tmp_path / "cat-state").mkdir()
    host = SimpleNamespace(home=tmp_path, allowed_roots=lambda: [tmp_path])
    inputs = {"network_weights": "none", "dim_from_weights": False, "continue_from": None, "resume_learning_rate": 0.0}
    with pytest.raises(part("backend.musubi_backend.errors").UserError, match=r"^continue_state .* is not a training state") as caught:
        part("nodes.training_start").of(host, {**inputs, "continue_state": "cat-state"})
    assert "--" not in str(caught.value)
