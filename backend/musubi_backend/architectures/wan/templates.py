"""Wan's example workflows."""

from __future__ import annotations

from typing import Any

from ..templates import Template, hugging_face

_CLIPS: dict[str, Any] = {"path": "my_clips", "width": 480, "height": 272, "target_frames": "1, 17"}
_VIDEO = {"video_length": 33}

DOWNLOADS = hugging_face(
    "Comfy-Org/Wan_2.1_ComfyUI_repackaged",
    {
        "wan2.1_t2v_1.3B_bf16.safetensors": "split_files/diffusion_models",
        "wan2.1_i2v_480p_14B_fp16.safetensors": "split_files/diffusion_models",
        "wan_2.1_vae.safetensors": "split_files/vae",
        "umt5_xxl_fp16.safetensors": "split_files/text_encoders",
        "clip_vision_h.safetensors": "split_files/clip_vision",
    },
) | hugging_face(
    "Comfy-Org/Wan_2.2_ComfyUI_Repackaged",
    {
        "wan2.2_t2v_low_noise_14B_fp16.safetensors": "split_files/diffusion_models",
        "wan2.2_t2v_high_noise_14B_fp16.safetensors": "split_files/diffusion_models",
    },
)

TEMPLATES = (
    Template(
        "wan",
        "my_lora",
        {"task": "t2v-1.3B"},
        _CLIPS,
        _VIDEO,
        hints=("With a 14B file choose *task* = *t2v-14B*.",),
    ),
    Template(
        "wan_i2v",
        "my_i2v_lora",
        {"task": "i2v-14B", "dit": "wan2.1_i2v_480p_14B_fp16.safetensors"},
        {**_CLIPS, "target_frames": "17"},
        _VIDEO,
        image=True,
        title="Wan2.1 image to video",
        large=True,
        hints=("The first frame of each clip is its start image; the samples start from the image in *Video Input*.",),
    ),
    Template(
        "wan22",
        "my_wan22_lora",
        {"task": "t2v-A14B", "dit": "wan2.2_t2v_low_noise_14B_fp16.safetensors"},
        _CLIPS,
        {**_VIDEO, "offload_inactive_dit": True},
        trainer={"offload_inactive_dit": True, "steps_per_expert": 10},
        lora_widgets=("lora_1", "high_lora_1"),
        title="Wan2.2",
        large=True,
        hints=(
            "Wan2.2 has two transformers: *dit* for low noise, *dit_high_noise* for high noise. The LoRA learns for both; "
            "*experts* of the trainer chooses one.",
            "*offload_inactive_dit* keeps the one that is not at work in system RAM; with *steps_per_expert* 10 they change places every "
            "10 steps or less often.",
        ),
    ),
)

QUICKSTART = Template(
    "quickstart",
    "quickstart",
    {"task": "t2v-1.3B", "dit": "demo_wan_t2v.safetensors", "vae": "demo_wan_vae.safetensors", "t5": "demo_umt5.safetensors"},
    {"path": "demo/quickstart", "width": 64, "height": 64, "enable_bucket": False, "target_frames": "17"},
    {
        "prompt": "a chessboard of light and dark wood in soft light",
        **{"width": 64, "height": 64, "video_length": 17, "infer_steps": 10, "guidance_scale": 1.0, "flow_shift": 1.0, "seed": 7},
    },
)
"""The demo model that the quickstart trains in a minute."""
