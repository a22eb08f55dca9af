"""HunyuanVideo's example workflows."""

from __future__ import annotations

from ..templates import Template

TEMPLATES = (
    Template(
        "hunyuan_video",
        "my_hunyuan_video_lora",
        dataset={"path": "my_clips", "width": 480, "height": 272, "target_frames": "1, 25"},
        video={"width": 480, "height": 272, "video_length": 33},
        sampling={"discrete_flow_shift": 7.0},
    ),
)
