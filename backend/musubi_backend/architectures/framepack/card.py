"""Facts about FramePack (sizes: github.com/lllyasviel/FramePack; it is HunyuanVideo with an image encoder and a history)."""

from __future__ import annotations

from ..card import Card, Task

CARD = Card(
    id="fp",
    order=3,
    name="framepack",
    title="FramePack",
    tool_prefix="fpack_",
    network_module="networks.lora_framepack",
    modelspec="framepack",
    implementation="https://github.com/lllyasviel/FramePack",
    lora_blocks=("HunyuanVideoTransformerBlock", "HunyuanVideoSingleTransformerBlock"),
    lora_exclude=r".*(norm).*",
    tasks=(
        Task(
            "fp",
            dim=3072,
            ffn_dim=12288,
            num_heads=24,
            num_layers=60,
            in_dim=16,
            image_encoder=True,
            steps=25,
            flow_shift=0.0,  # none: it depends on the size
            guidance_scale=1.0,
            frames=121,
        ),
    ),
    model_folders={
        "dit": "diffusion_models",
        "vae": "vae",
        "text_encoder1": "text_encoders",
        "text_encoder2": "text_encoders",
        "image_encoder": "clip_vision",
    },
    kinds={
        "dit": ("framepack_transformer",),
        "vae": ("hunyuan_video_vae",),
        "text_encoder1": ("llama",),
        "text_encoder2": ("clip_l", "clip_vision"),
        "image_encoder": ("siglip",),
    },
    text_encoders=("text_encoder1", "text_encoder2"),
    image_encoder="image_encoder",
    comfy_lora="hv",  # ComfyUI has no FramePack; its layers are HunyuanVideo's, which are fused there
    fp8_target=("transformer_blocks", "single_transformer_blocks"),
    fp8_exclude=("norm",),
    fps=30,
    embedded_guidance=10.0,
    latent_dtype="float16",
    window_in_bucket=True,
    control_masks=True,
    sections=True,
    dtype_tensors=("transformer_blocks.0.attn.to_q.weight",),
    text_keys=("llama_vec", "llama_attention_mask", "clip_l_pooler"),
)
