"""Flags that other versions, guides and programs use, and what they are called here."""

from __future__ import annotations

from collections.abc import Collection

FORMER: dict[str, tuple[str, ...]] = {
    "--cfg_scale": ("--guidance_scale",),
    "--checkpoint": ("--dit",),
    "--ckpt_path": ("--dit",),
    "--ema_decay": ("--beta",),
    "--epochs": ("--max_train_epochs",),
    "--guidance": ("--guidance_scale",),
    "--height": ("--video_size",),
    "--image_input": ("--image_path",),
    "--input_lora": ("--lora_weight", "--input"),
    "--llm_path": ("--t5", "--text_encoder1"),
    "--logdir": ("--logging_dir",),
    "--lora_alpha": ("--network_alpha",),
    "--lora_path": ("--lora_weight",),
    "--lora_rank": ("--network_dim",),
    "--lr": ("--learning_rate",),
    "--num_frames": ("--video_length",),
    "--num_inference_steps": ("--infer_steps",),
    "--num_train_epochs": ("--max_train_epochs",),
    "--pretrained_model_name_or_path": ("--dit",),
    "--rank": ("--network_dim",),
    "--solver": ("--sample_solver",),
    "--steps": ("--infer_steps", "--max_train_steps"),
    "--transformer": ("--dit",),
    "--unet_lr": ("--learning_rate",),
    "--use_8bit_adam": ("--optimizer_type adamw8bit",),
    "--width": ("--video_size",),
}
"""The first one that a tool has is meant."""

ELSEWHERE = {
    "--batch_size": "batch_size in the [general] or [[datasets]] part of the dataset file",
    "--enable_bucket": "enable_bucket in the [general] or [[datasets]] part of the dataset file",
    "--num_cpu_threads_per_process": "a flag of accelerate launch, in front of the script",
    "--resolution": "resolution in the [general] or [[datasets]] part of the dataset file",
    "--train_batch_size": "batch_size in the [general] or [[datasets]] part of the dataset file",
    "--train_data_dir": "image_directory or video_directory in a [[datasets]] part of the dataset file",
}


def answer(flag: str, known: Collection[str]) -> str:
    """What to say of a former flag where a tool has the flags `known`; nothing where it has no successor there."""
    today = next((said for said in FORMER.get(flag, ()) if said.split()[0] in known), None) or ELSEWHERE.get(flag)
    return f"; it is {today} today" if today else ""
