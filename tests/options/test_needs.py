"""Settings that have no effect without another one are said or rejected, in every tool; no template of ours passes such a pair."""

from __future__ import annotations

import logging
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
from musubi_backend.errors import UserError
from musubi_backend.options.needs import unmet
from musubi_backend.options.option import Option, steps_or_share
from musubi_backend.options.parser import parse
from musubi_backend.options.registry import Tool, tool, tools
from musubi_backend.options.tables.needs import NEEDS, Need
from musubi_backend.options.values import default_of

TOLD = {  # by verb: settings that have no effect alone; those in capitals are rejected
    "train": """
        max_train_steps GRADIENT_CHECKPOINTING_CPU_OFFLOAD DIM_FROM_WEIGHTS network_dim network_alpha RESUME_LEARNING_RATE training_comment
        save_last_n_epochs save_last_n_epochs_state save_last_n_steps save_last_n_steps_state sample_prompts SAMPLE_AT_FIRST
        SAMPLE_EVERY_N_STEPS SAMPLE_EVERY_N_EPOCHS vae_dtype vae_cache_cpu vae_tiling vae_chunk_size vae_spatial_tile_sample_min_size
        bulk_decode fp8_t5 fp8_llm offload_text_encoder text_encoder_dtype lr_decay_steps lr_scheduler_num_cycles lr_scheduler_power
        lr_scheduler_timescale
        lr_scheduler_min_lr_ratio lr_scheduler discrete_flow_shift sigmoid_scale weighting_scheme logit_mean logit_std mode_scale
        preserve_distribution_shape num_timestep_buckets guidance_scale log_prefix log_tracker_name log_config wandb_run_name wandb_api_key
        FP8_SCALED block_swap_ring_size dynamo_mode dynamo_fullgraph dynamo_dynamic use_pinned_memory_for_block_swap compile_backend
        compile_mode compile_dynamic compile_fullgraph compile_cache_size_limit timestep_boundary OFFLOAD_INACTIVE_DIT LORA_PER_EXPERT
        skip_mismatched steps_per_expert KEEP_ATTENTION_BLOCKS OFFLOAD_ATTENTION_BLOCKS accumulate_by_block fsdp_sharding_strategy
    """,
    "generate": """
        FP8_FAST include_patterns exclude_patterns exclude_single_blocks cfg_skip_mode cfg_apply_ratio slg_layers slg_mode slg_scale
        slg_start slg_end strength control_image_path control_image_mask_path one_frame_auto_resize video_seconds guidance_rescale
        rope_scaling_factor magcache_retention_ratio magcache_threshold magcache_k use_pinned_memory_for_block_swap compile_backend
        compile_mode compile_dynamic compile_fullgraph compile_cache_size_limit OFFLOAD_INACTIVE_DIT LAZY_LOADING LORA_WEIGHT_HIGH_NOISE
        guidance_scale_high_noise skip_mismatched
    """,
    "cache_latents": "console_width console_back console_num_images one_frame_no_2x one_frame_no_4x",
    "caption_images_by_qwen_vl": "output_file caption_extension video_frames",
    "lora_post_hoc_ema": "beta beta2",
    "convert_lora": "diffusers_prefix",
}


def test_all_that_do_nothing_alone_are_known() -> None:
    for verb, words in TOLD.items():
        names = {need.setting.partition("=")[0] for need in NEEDS[verb]}
        assert names == {word.lower() for word in words.split()}, f"{verb}: list here what the table has"
        assert {need.setting for need in NEEDS[verb] if need.rejected} == {word.lower() for word in words.split() if word.isupper()}, verb
    assert set(NEEDS) == set(TOLD)


@pytest.mark.parametrize(
    ("tool_name", "given", "words"),
    [
        ("wan_train_network", {"save_last_n_steps_state": 5, "save_state": True}, "save_every_n_steps"),
        ("wan_train_network", {"save_last_n_steps_state": 5, "save_every_n_steps": 1}, "save_state"),
        ("wan_train_network", {"preserve_distribution_shape": True, "max_timestep": 9}, "timestep_sampling"),
        ("wan_train_network", {"preserve_distribution_shape": True, "timestep_sampling": "uniform"}, "min_timestep or --max_timestep"),
        ("wan_train_network", {"num_timestep_buckets": 4, "timestep_sampling": "sigma"}, "timestep_sampling"),
        ("wan_train_network", {"wandb_run_name": "x", "log_with": "tensorboard"}, "log_with wandb or all"),
        ("wan_train_network", {"weighting_scheme": "mode", "timestep_sampling": "shift"}, "timestep_sampling sigma"),
        ("wan_train_network", {"max_train_steps": 5, "max_train_epochs": 1}, "together with --max_train_epochs"),
        ("wan_train_network", {"guidance_scale": 2.0}, "with these models"),
        ("wan_train_network", {"lr_scheduler": "constant_with_warmup"}, "needs --lr_warmup_steps"),
        ("wan_train_network", {"lr_scheduler": "warmup_stable_decay"}, "needs --lr_decay_steps or --lr_warmup_steps"),
        ("wan_train_network", {"lr_scheduler": "warmup_stable_decay", "lr_warmup_steps": 9}, ""),
        ("lora_post_hoc_ema", {"beta2": 0.5, "sigma_rels": [0.1]}, "together with --sigma_rels"),
        ("wan_generate_video", {"slg_scale": 2.0, "slg_mode": "uncond", "slg_layers": "9"}, "slg_mode original"),
        ("wan_train_network", {"weighting_scheme": "cosmap"}, ""),
        ("wan_train_network", {"logit_std": 2.0, "weighting_scheme": "logit_normal"}, ""),
        ("wan_train_network", {"preserve_distribution_shape": True, "min_timestep": 9, "timestep_sampling": "logsnr"}, ""),
        ("wan_train_network", {"num_timestep_buckets": 4, "timestep_sampling": "uniform"}, ""),
        ("wan_train_network", {"sample_prompts": "x", "sample_at_first": True}, ""),
        ("hv_train_network", {"guidance_scale": 2.0}, ""),
        ("wan_generate_video", {"lora_weight": ["x"], "include_patterns": ["y"]}, ""),
        ("wan_generate_video", {"control_image_path": ["x"], "from_file": "y"}, ""),
        ("lora_post_hoc_ema", {"beta2": 0.5}, ""),
    ],
)
def test_one_of_several_partners_is_enough_and_several_lines_are_all_needed(tool_name: str, given: dict[str, Any], words: str) -> None:
    target = tool(tool_name)
    reported = [sentence for _, sentence in unmet(target, Namespace(**{**defaults(target), **given}))]
    assert len(reported) == (1 if words else 0) and words in "".join(reported), reported


def every_need() -> list[tuple[Tool, Need]]:
    pairs = [(one, need) for one in tools().values() for need in NEEDS.get(one.verb, ())]
    return [(one, need) for one, need in pairs if need.setting.partition("=")[0] in {option.name for option in one.options}]


def defaults(target: Tool) -> dict[str, Any]:
    return {option.name: default_of(option) for option in target.options}


def another_value(option: Option) -> Any:
    """A value that the option does not have by default."""
    if option.kind is bool:
        return True
    if option.kind in (int, float, steps_or_share):
        value = next(value for value in (0.5, 2, 1, 9, 40) if option.minimum <= value <= option.maximum and value != option.default)  # type: ignore[operator]
        return int(value) if option.kind is int and value != 0.5 else value
    return next((choice for choice in option.choices or () if choice != option.default), "something")


def made_true(target: Tool, values: dict[str, Any], side: str) -> None:
    name, asks, accepted = side.partition("=")
    if asks:
        values[name] = accepted.split(",")[0] if accepted else default_of(target.option(name))
    else:
        values[name] = another_value(target.option(name))


@pytest.mark.parametrize(("target", "need"), every_need(), ids=lambda value: getattr(value, "name", None) or getattr(value, "setting", ""))
def test_each_is_reported_alone_and_silent_with_its_partner(target: Tool, need: Need) -> None:
    values = defaults(target)
    made_true(target, values, need.setting)
    partner = need.partners[0]
    name, asks, accepted = partner.partition("=")
    has = name in values
    if asks and not accepted and has:
        values[name] = another_value(target.option(name))
    elif asks and has and str(values[name]) in accepted.split(","):
        values[name] = "none"
    met = name == "card.embedded_guidance" and target.architecture in ("hv", "fp")
    reported = [sentence for one, sentence in unmet(target, Namespace(**values)) if one is need]
    assert len(reported) == (0 if met else 1)
    assert met or need.setting.partition("=")[0] in reported[0]
    if has:
        made_true(target, values, partner)
        assert need not in [one for one, _ in unmet(target, Namespace(**values))]


def test_nothing_is_reported_of_defaults() -> None:
    for target in tools().values():
        assert list(unmet(target, Namespace(**defaults(target)))) == []


@pytest.fixture
def training(tmp_path: Path) -> list[str]:
    for name in ("dit.safetensors", "data.toml"):
        (tmp_path / name).touch()
    files = ["--dit", str(tmp_path / "dit.safetensors"), "--dataset_config", str(tmp_path / "data.toml"), "--output_dir", str(tmp_path)]
    return [*files, "--output_name", "x", "--network_module", "networks.lora_wan", "--optimizer_type", "AdamW", "--sdpa"]


def test_harmless_ones_are_said_and_train(training: list[str], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        parse("wan_train_network", [*training, "--save_every_n_epochs", "1", "--save_last_n_steps", "30", "--lr_decay_steps", "0.1"])
    assert [record.message for record in caplog.records] == [
        "--save_last_n_steps 30 has no effect alone, it needs --save_every_n_steps: add that, or leave --save_last_n_steps out",
        "--lr_decay_steps 0.1 has no effect alone, it needs --lr_scheduler warmup_stable_decay: add that, or leave --lr_decay_steps out",
    ]


def test_misleading_ones_are_rejected_together(training: list[str]) -> None:
    with pytest.raises(UserError) as refused:
        parse("wan_train_network", [*training, "--fp8_scaled", "--sample_every_n_steps", "5", "--dim_from_weights"])
    assert [line.split(":")[0] for line in str(refused.value).splitlines()] == [
        "--dim_from_weights needs --network_weights", "--sample_every_n_steps needs --sample_prompts", "--fp8_scaled needs --fp8_base",
    ]  # fmt: skip


def test_every_number_has_bounds() -> None:
    for target in tools().values():
        for option in target.options:
            if option.kind in (int, float, steps_or_share) and not option.unsupported and not option.no_effect:
                assert option.minimum is not None and option.maximum is not None, (target.name, option.flag)


def test_rank_0_is_rejected() -> None:
    with pytest.raises(UserError, match="--network_dim: must be at least 1, not 0"):
        parse(tool("wan_train_network").name, ["--network_dim", "0"])
