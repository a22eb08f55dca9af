"""HunyuanVideo's example workflows."""

from __future__ import annotations

from ..templates import Template, hugging_face

DOWNLOADS = hugging_face(
    "Comfy-Org/HunyuanVideo_repackaged",
    {
        "hunyuan_video_t2v_720p_bf16.safetensors": "split_files/diffusion_models",
        "hunyuan_video_vae_bf16.safetensors": "split_files/vae",
        "llava_llama3_fp16.safetensors": "split_files/text_encoders",
        "clip_l.safetensors": "split_files/text_encoders",
    },
)

TEMPLATES = (
    Template(
        "hunyuan_video",
        "my_hunyuan_video_lora",
        dataset={"path": "my_clips", "width": 480, "height": 272, "target_frames": "1, 25"},
        video={"width": 480, "height": 272, "video_length": 33},
        sampling={"discrete_flow_shift": 7.0},
        large=True,
        hints=("*discrete_flow_shift* of *Sampling Config* is 7 for this model.",),
    ),
)
