"""Wan's example workflows."""

from __future__ import annotations

from typing import Any

from ..templates import Template

_CLIPS: dict[str, Any] = {"path": "my_clips", "width": 480, "height": 272, "target_frames": "1, 17"}
_VIDEO = {"video_length": 33}

TEMPLATES = (
    Template("wan", "my_lora", {"task": "t2v-1.3B"}, _CLIPS, _VIDEO),
    Template(
        "wan_i2v",
        "my_i2v_lora",
        {"task": "i2v-14B", "dit": "wan2.1_i2v_480p_14B_fp16.safetensors"},
        {**_CLIPS, "target_frames": "17"},
        _VIDEO,
        picture=True,
    ),
    Template(
        "wan22",
        "my_wan22_lora",
        {"task": "t2v-A14B", "dit": "wan2.2_t2v_low_noise_14B_fp16.safetensors"},
        _CLIPS,
        {**_VIDEO, "offload_inactive_dit": True},
        trainer={"offload_inactive_dit": True},
        lora_widgets=("lora_1", "high_lora_1"),
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
