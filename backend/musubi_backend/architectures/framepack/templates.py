"""FramePack's example workflows."""

from __future__ import annotations

from ..templates import Template

TEMPLATES = (
    Template(
        "framepack",
        "my_framepack_lora",
        dataset={"path": "my_clips", "width": 480, "height": 272, "target_frames": "73"},
        video={"width": 480, "height": 272, "video_seconds": 3.0},
        sampling={"sample_frames": 37},
        picture=True,
    ),
)
