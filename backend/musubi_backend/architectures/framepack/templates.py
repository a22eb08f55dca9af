"""FramePack's example workflows."""

from __future__ import annotations

from ..hunyuan_video.templates import DOWNLOADS as _SHARED
from ..templates import Template, hugging_face

DOWNLOADS = {
    **{file: _SHARED[file] for file in ("hunyuan_video_vae_bf16.safetensors", "llava_llama3_fp16.safetensors", "clip_l.safetensors")},
    **hugging_face("Kijai/HunyuanVideo_comfy", {"FramePackI2V_HY_bf16.safetensors": ""}),
    **hugging_face("Comfy-Org/sigclip_vision_384", {"sigclip_vision_patch14_384.safetensors": ""}),
}

TEMPLATES = (
    Template(
        "framepack",
        "my_framepack_lora",
        dataset={"path": "my_clips", "width": 480, "height": 272, "target_frames": "73"},
        video={"width": 480, "height": 272, "video_seconds": 3.0},
        sampling={"sample_frames": 37},
        image=True,
        large=True,
        hints=(
            "Clips must be long enough for one section: 37 frames or more at 30 frames per second.",
            "Choose the *variant* that fits the file: F1 or not. ComfyUI itself has no FramePack model.",
        ),
    ),
)
