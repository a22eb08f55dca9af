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

UNREACHED = {  # by any node, with the reason
    "block_swap_h2d_only": "it is what always happens",
    "block_swap_ring_size": "the memory plan chooses it",
    "compile_backend": "dynamo_backend of Expert Settings is the same setting",
    "compile_cache_size_limit": "one version per bucket size fits in the default",
    "compile_dynamic": "dynamo_dynamic of Expert Settings is the same setting",
    "compile_fullgraph": "dynamo_fullgraph of Expert Settings is the same setting",
    "compile_mode": "dynamo_mode of Expert Settings is the same setting",
    "config_file": "nodes pass each setting by itself",
    "cpu_threads": "install.py --cpu-threads sets it for the machine",
    "cuda_cudnn_benchmark": "it tries convolutions, and the transformers have next to none",
    "ddp_gradient_as_bucket_view": "of the launcher; a LoRA's gradients are small",
    "ddp_static_graph": "of the launcher; a promise that dropout of LoRA modules would break",
    "ddp_timeout": "of the launcher; the default is right on one machine, and nodes start on one",
    "disable_numpy_memmap": "for drives that cannot map files, which is the machine's matter",
    "dit_dtype": "it follows mixed_precision and the file",
    "dry_step": "it trains nothing: it measures one step; Memory Optimizer plans one",
    "force_v2_1_time_embedding": "it changes the result slightly, for memory that is not short in training",
    "img_in_txt_in_offloading": "megabytes; blocks_to_swap is what saves",
    "lr_scheduler_args": "of lr_scheduler_type",
    "lr_scheduler_timescale": "inverse_sqrt takes it from the warm-up",
    "lr_scheduler_type": "a class path: nothing that a workflow says chooses code",
    "offload_text_encoder": "it happens by itself where the encoder does not fit; the memory plan chooses it",
    "metadata_arch": "the right one is stored",
    "metadata_author": "who shares a LoRA writes it; training_comment holds notes",
    "metadata_description": "who shares a LoRA writes it; training_comment holds notes",
    "metadata_license": "who shares a LoRA writes it; training_comment holds notes",
    "metadata_reso": "the dataset says it",
    "metadata_tags": "who shares a LoRA writes it; training_comment holds notes",
    "metadata_title": "the name of the LoRA is stored",
    "show_timesteps": "it trains nothing",
    "skip_mismatched": "a LoRA below that does not fit is an error",
    "wandb_api_key": "workflows are shared; the key comes from the user's own environment or from wandb login",
}
ONLY_ON_A_TERMINAL = {  # no node sets them
    TRAIN: " ".join(UNREACHED),
    GENERATE: "ckpt_dir compile_args compile_backend compile_cache_size_limit compile_dynamic compile_fullgraph compile_mode "
    "disable_numpy_memmap exclude_patterns force_v2_1_time_embedding fp8_fast img_in_txt_in_offloading include_patterns interactive "
    "latent_path lycoris offload_text_encoder save_merged_model split_uncond",
    CACHE_TEXT: "offload_text_encoder",
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


def test_every_setting_of_a_trainer_is_at_a_node_or_in_the_table_with_its_reason(part: Any) -> None:
    """What is neither fails in the test of flags as widgets."""
    specs = [node.spec for node in part("nodes.catalog").NODES if node.spec.category.endswith(("/Train", "/Models"))]
    widgets = {entry.option or entry.name for spec in specs for entry in spec.inputs}
    known = {option.name for tool in tools().values() if tool.verb == TRAIN for option in tool.options if not option.unsupported}
    assert set(UNREACHED) - known == set() and widgets & set(UNREACHED) == set()


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
