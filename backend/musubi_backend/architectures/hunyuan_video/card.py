"""Facts about HunyuanVideo (sizes: github.com/Tencent-Hunyuan/HunyuanVideo, `hyvideo/modules/models.py`)."""

from __future__ import annotations

from ..card import TEXT_ENCODER, TRANSFORMER, VAE, Card, Part, Task

SHARED_PARTS = (
    Part(
        "vae",
        VAE,
        "The HunyuanVideo VAE",
        folder="vae",
        example="hunyuan_video_vae_bf16.safetensors",
        dtype="bfloat16",
        kinds=("hunyuan_video_vae",),
    ),
    Part(
        "text_encoder1",
        TEXT_ENCODER,
        "The LLaVA-Llama3 text encoder",
        folder="text_encoders",
        example="llava_llama3_fp16.safetensors",
        dtype="float16",
        kinds=("llama",),
    ),
    Part(
        "text_encoder2",
        TEXT_ENCODER,
        "The CLIP-L text encoder",
        folder="text_encoders",
        example="clip_l.safetensors",
        dtype="float16",
        kinds=("clip_l", "clip_vision"),
    ),
)
"""The VAE and text encoders, which its relatives have too."""

CARD = Card(
    id="hv",
    order=2,
    name="hunyuan_video",
    title="HunyuanVideo",
    family="HunyuanVideo",
    tool_prefix="hv_",
    cache_tools=("cache_latents", "cache_text_encoder_outputs"),
    network_module="networks.lora",
    modelspec="hunyuan-video",
    implementation="https://github.com/Tencent/HunyuanVideo",
    lora_blocks=("MMDoubleStreamBlock", "MMSingleStreamBlock"),
    comfy_lora="hv",  # it calls img_mlp.fc1 img_mlp.0
    block_lists=("double_blocks.", "single_blocks."),
    lora_exclude=r".*(img_mod|txt_mod|modulation).*",
    tasks=(
        Task(
            "hv", dim=3072, ffn_dim=12288, num_heads=24, num_layers=60, in_dim=16, steps=50, flow_shift=7.0, guidance_scale=1.0, frames=129
        ),
    ),
    parts=(
        Part(
            "dit",
            TRANSFORMER,
            "The transformer",
            folder="diffusion_models",
            example="hunyuan_video_t2v_720p_bf16.safetensors",
            dtype="bfloat16",
            kinds=("hunyuan_video_transformer",),
        ),
        *SHARED_PARTS,
    ),
    fps=24,
    embedded_guidance=6.0,
    noise_per_frame=True,
    result_index="0_",
    result_suffix="",
    latent_dtype="float16",
    dtype_tensors=("double_blocks.0.img_attn_qkv.weight", "double_blocks.0.img_attn.qkv.weight"),
    text_keys=("llm", "llm_mask", "clipL", "clipL_mask"),
)
