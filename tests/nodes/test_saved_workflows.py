"""Workflows that people have saved keep working: ComfyUI stores widget values and links by position, so both only ever get longer."""

from __future__ import annotations

from typing import Any

import pytest

# node -> its widgets and its outputs in the order of the first release
FIRST_RELEASE = {
    "DatasetConfig": (
        "source path caption_extension width height batch_size num_repeats enable_bucket bucket_no_upscale target_frames frame_extraction "
        "frame_stride frame_sample max_frames source_fps cache_directory",
        "dataset toml report",
    ),
    "DatasetConfigLoader": (
        "path",
        "dataset report",
    ),
    "VAELatentCache": (
        "skip_existing keep_cache batch_size num_workers device vae_cache_cpu disable_cudnn_backend",
        "latents",
    ),
    "TextEncoderCache": (
        "skip_existing keep_cache batch_size num_workers device",
        "text",
    ),
    "WanModelPaths": (
        "task dit vae t5",
        "models",
    ),
    "LoRATrainingConfig": (
        "max_train_steps max_train_epochs network_dim network_alpha network_dropout mixed_precision gradient_checkpointing "
        "gradient_checkpointing_cpu_offload gradient_accumulation_steps attention split_attn training_seed save_every_n_steps "
        "save_every_n_epochs save_last_n_steps save_last_n_epochs save_state save_last_n_steps_state save_last_n_epochs_state "
        "save_state_on_train_end save_precision scale_weight_norms max_data_loader_n_workers persistent_data_loader_workers "
        "cuda_allow_tf32 training_comment",
        "lora_config",
    ),
    "OptimizerConfig": (
        "optimizer_type learning_rate lr_scheduler lr_warmup_steps lr_decay_steps lr_scheduler_num_cycles lr_scheduler_power "
        "lr_scheduler_min_lr_ratio max_grad_norm optimizer_args",
        "optimizer",
    ),
    "SamplingConfig": (
        "timestep_sampling discrete_flow_shift sigmoid_scale weighting_scheme logit_mean logit_std mode_scale min_timestep max_timestep "
        "preserve_distribution_shape num_timestep_buckets sample_prompts sample_every_n_steps sample_every_n_epochs sample_at_first "
        "sample_width sample_height sample_frames sample_steps sample_seed",
        "sampling",
    ),
    "WanLoRATrainer": (
        "output_name resume processes run_id",
        "lora_name lora_path lora_model loss_map job",
    ),
    "WanVideoGenerator": (
        "prompt negative_prompt width height video_length fps infer_steps guidance_scale flow_shift seed sample_solver lora_1 "
        "multiplier_1 lora_2 multiplier_2 lora_3 multiplier_3 lora_4 multiplier_4 cfg_skip_mode cfg_apply_ratio slg_layers slg_mode "
        "slg_scale slg_start slg_end cpu_noise trim_tail_frames attn_mode vae_cache_cpu device",
        "video frames path",
    ),
    "VideoOutput": (
        "filename_prefix format fps",
        "path",
    ),
    "BackendInfo": (
        "refresh",
        "report",
    ),
}


@pytest.mark.parametrize("node", FIRST_RELEASE)
def test_widgets_and_outputs_keep_their_places(part: Any, node: str) -> None:
    spec = next(one.spec for one in part("nodes.catalog").NODES if one.spec.id == f"MusubiTuner_{node}")
    widgets, outputs = (names.split() for names in FIRST_RELEASE[node])
    assert [entry.name for entry in spec.inputs if entry.is_widget][: len(widgets)] == widgets
    assert [output.name for output in spec.outputs][: len(outputs)] == outputs
