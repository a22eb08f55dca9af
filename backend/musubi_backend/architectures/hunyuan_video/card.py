"""Facts about HunyuanVideo (sizes: github.com/Tencent-Hunyuan/HunyuanVideo, `hyvideo/modules/models.py`)."""

from __future__ import annotations

from ..card import Card, Task

CARD = Card(
    id="hv",
    order=2,
    name="hunyuan_video",
    title="HunyuanVideo",
    tool_prefix="hv_",
    cache_tools=("cache_latents", "cache_text_encoder_outputs"),
    network_module="networks.lora",
    modelspec="hunyuan-video",
    implementation="https://github.com/Tencent/HunyuanVideo",
    lora_blocks=("MMDoubleStreamBlock", "MMSingleStreamBlock"),
    comfy_lora="hv",  # it calls img_mlp.fc1 img_mlp.0
    lora_exclude=r".*(img_mod|txt_mod|modulation).*",
    tasks=(
        Task(
            "hv", dim=3072, ffn_dim=12288, num_heads=24, num_layers=60, in_dim=16, steps=50, flow_shift=7.0, guidance_scale=1.0, frames=129
        ),
    ),
    model_folders={
        "dit": "diffusion_models",
        "vae": "vae",
        "text_encoder1": "text_encoders",
        "text_encoder2": "text_encoders",
    },
    kinds={
        "dit": ("hunyuan_video_transformer",),
        "vae": ("hunyuan_video_vae",),
        "text_encoder1": ("llama",),
        "text_encoder2": ("clip_l", "clip_vision"),
    },
    text_encoders=("text_encoder1", "text_encoder2"),
    fps=24,
    embedded_guidance=6.0,
    noise_per_frame=True,
    result_index="0_",
    result_suffix="",
    latent_dtype="float16",
    dtype_tensors=("double_blocks.0.img_attn_qkv.weight", "double_blocks.0.img_attn.qkv.weight"),
    text_keys=("llm", "llm_mask", "clipL", "clipL_mask"),
)
