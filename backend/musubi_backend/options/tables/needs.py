"""Settings that have no effect without another one: one line each, for all tools.

A side is "name" (is set), "name=a,b" (has one of these values), "name=" (is not set) or "card.name" (the architecture's card has it).
Of several partners one is enough; a setting with several lines needs all of them. What a tool does not have counts as not set. Settings
that a class of another library voids are
in `training/voided.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..option import CACHE_LATENTS, CAPTION, GENERATE, LORA_CONVERT, LORA_EMA, TRAIN


@dataclass(frozen=True)
class Need:
    """`setting` acts only where one of `partners` holds. rejected: without it somebody would surely get something else than asked."""

    setting: str
    partners: tuple[str, ...]
    rejected: bool = False


def _need(setting: str, *partners: str) -> Need:
    return Need(setting, partners)


def _must(setting: str, *partners: str) -> Need:
    return Need(setting, partners, rejected=True)


_BY_SIGMOID = "timestep_sampling=sigmoid,shift,flux_shift,flux2_shift,qwen_shift,krea2_shift,qinglong_flux,qinglong_qwen"
_NOT_SIGMA = f"{_BY_SIGMOID},uniform,ideogram4_shift,logsnr"
_SAMPLES = ("sample_at_first", "sample_every_n_steps", "sample_every_n_epochs")
_WANDB = "log_with=wandb,all"
_ASKED_LATER = ("from_file", "interactive")  # their prompts bring settings of their own
_COMPILED = (
    _need("compile_backend", "compile"),
    _need("compile_mode", "compile"),
    _need("compile_dynamic", "compile"),
    _need("compile_fullgraph", "compile"),
    _need("compile_cache_size_limit", "compile"),
)
_SWAPPED = (_need("use_pinned_memory_for_block_swap", "blocks_to_swap", "offload_inactive_dit"),)

NEEDS: dict[str, tuple[Need, ...]] = {
    TRAIN: (
        _need("max_train_steps", "max_train_epochs="),
        _must("gradient_checkpointing_cpu_offload", "gradient_checkpointing"),
        _must("keep_attention_blocks", "gradient_checkpointing"),
        _must("offload_attention_blocks", "gradient_checkpointing"),
        _need("accumulate_by_block", "gradient_accumulation_steps"),
        _need("accumulate_by_block", "blocks_to_swap", "dit_high_noise"),
        _must("dim_from_weights", "network_weights"),
        _need("network_dim", "dim_from_weights="),
        _need("network_alpha", "dim_from_weights="),
        _must("resume_learning_rate", "resume"),
        _need("training_comment", "no_metadata="),
        # saving
        _need("save_last_n_epochs", "save_every_n_epochs"),
        _need("save_last_n_epochs_state", "save_every_n_epochs"),
        _need("save_last_n_epochs_state", "save_state"),
        _need("save_last_n_steps", "save_every_n_steps"),
        _need("save_last_n_steps_state", "save_every_n_steps"),
        _need("save_last_n_steps_state", "save_state"),
        _need("skip_mismatched", "base_weights"),
        # samples
        _need("sample_prompts", *_SAMPLES),
        *(_must(name, "sample_prompts") for name in _SAMPLES),
        _need("vae_dtype", "sample_prompts"),
        _need("vae_cache_cpu", "sample_prompts"),
        _need("vae_tiling", "sample_prompts"),
        _need("vae_chunk_size", "sample_prompts"),
        _need("vae_spatial_tile_sample_min_size", "sample_prompts"),
        _need("bulk_decode", "sample_prompts"),
        _need("fp8_t5", "sample_prompts"),
        _need("fp8_llm", "sample_prompts"),
        _need("offload_text_encoder", "sample_prompts"),
        _need("text_encoder_dtype", "sample_prompts"),
        # schedule
        _need("lr_scheduler=constant_with_warmup", "lr_warmup_steps"),
        _need("lr_scheduler=warmup_stable_decay", "lr_decay_steps", "lr_warmup_steps"),
        _need("lr_decay_steps", "lr_scheduler=warmup_stable_decay"),
        _need("lr_scheduler_num_cycles", "lr_scheduler=cosine_with_restarts,cosine_with_min_lr,warmup_stable_decay"),
        _need("lr_scheduler_power", "lr_scheduler=polynomial"),
        _need("lr_scheduler_timescale", "lr_scheduler=inverse_sqrt"),
        _need("lr_scheduler_min_lr_ratio", "lr_scheduler=cosine_with_min_lr,cosine_warmup_with_min_lr,warmup_stable_decay,rex"),
        # noise levels
        _need("discrete_flow_shift", "timestep_sampling=shift"),
        _need("sigmoid_scale", _BY_SIGMOID),
        _need("weighting_scheme=logit_normal,mode", "timestep_sampling=sigma"),
        _need("logit_mean", "timestep_sampling=logsnr,qinglong_flux,qinglong_qwen", "weighting_scheme=logit_normal"),
        _need("logit_std", "timestep_sampling=logsnr,qinglong_flux,qinglong_qwen", "weighting_scheme=logit_normal"),
        _need("mode_scale", "weighting_scheme=mode"),
        _need("preserve_distribution_shape", "min_timestep", "max_timestep"),
        _need("preserve_distribution_shape", _NOT_SIGMA),
        _need("num_timestep_buckets", _NOT_SIGMA),
        _need("guidance_scale", "card.embedded_guidance"),
        # logging
        _need("log_prefix", "logging_dir"),
        _need("log_tracker_name", "logging_dir", _WANDB),
        _need("log_config", "logging_dir", _WANDB),
        _need("wandb_run_name", _WANDB),
        _need("wandb_api_key", _WANDB),
        # memory
        _must("fp8_scaled", "fp8_base"),
        _need("block_swap_ring_size", "blocks_to_swap"),
        _need("dynamo_mode", "dynamo_backend"),
        _need("dynamo_fullgraph", "dynamo_backend"),
        _need("dynamo_dynamic", "dynamo_backend"),
        _need("fsdp_sharding_strategy", "fsdp"),
        *_SWAPPED,
        *_COMPILED,
        # two experts
        _need("timestep_boundary", "dit_high_noise"),
        _must("offload_inactive_dit", "dit_high_noise"),
        _must("lora_per_expert", "dit_high_noise"),
        _need("steps_per_expert", "dit_high_noise"),
    ),
    GENERATE: (
        _must("fp8_fast", "fp8", "fp8_scaled"),
        _need("include_patterns", "lora_weight", "lora_weight_high_noise"),
        _need("exclude_patterns", "lora_weight", "lora_weight_high_noise"),
        _need("exclude_single_blocks", "lora_weight"),
        _need("skip_mismatched", "lora_weight", "lora_weight_high_noise"),
        _need("cfg_skip_mode", "cfg_apply_ratio"),
        _need("cfg_apply_ratio", "cfg_skip_mode"),
        _need("slg_layers", "slg_mode"),
        _need("slg_mode", "slg_layers"),
        _need("slg_scale", "slg_mode=original"),
        _need("slg_start", "slg_layers"),
        _need("slg_end", "slg_layers"),
        _need("strength", "video_path", *_ASKED_LATER),
        _need("control_image_path", "one_frame_inference", *_ASKED_LATER),
        _need("control_image_mask_path", "control_image_path", *_ASKED_LATER),
        _need("one_frame_auto_resize", "one_frame_inference", *_ASKED_LATER),
        _need("video_seconds", "video_sections="),
        _need("guidance_rescale", "guidance_scale", *_ASKED_LATER),
        _need("rope_scaling_factor", "rope_scaling_timestep_threshold"),
        _need("magcache_retention_ratio", "magcache_mag_ratios"),
        _need("magcache_threshold", "magcache_mag_ratios"),
        _need("magcache_k", "magcache_mag_ratios"),
        *_SWAPPED,
        *_COMPILED,
        _must("offload_inactive_dit", "dit_high_noise"),
        _must("lazy_loading", "dit_high_noise"),
        _must("lora_weight_high_noise", "dit_high_noise"),
        _need("guidance_scale_high_noise", "dit_high_noise"),
    ),
    CACHE_LATENTS: (
        _need("console_width", "debug_mode=console"),
        _need("console_back", "debug_mode=console"),
        _need("console_num_images", "debug_mode=console"),
        _need("one_frame_no_2x", "one_frame"),
        _need("one_frame_no_4x", "one_frame"),
    ),
    CAPTION: (
        _need("output_file", "output_format=jsonl"),
        _need("caption_extension", "output_format=text"),
        _need("video_frames", "media=all,videos"),
    ),
    LORA_EMA: (
        _need("beta", "sigma_rel="),
        _need("beta", "sigma_rels="),
        _need("beta2", "sigma_rel="),
        _need("beta2", "sigma_rels="),
    ),
    LORA_CONVERT: (_need("diffusers_prefix", "target=other"),),
}
