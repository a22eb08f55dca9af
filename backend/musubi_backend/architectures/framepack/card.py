"""Facts about FramePack (sizes: github.com/lllyasviel/FramePack; it is HunyuanVideo with an image encoder and a history)."""

from __future__ import annotations

from ..card import IMAGE_ENCODER, TRANSFORMER, Card, Part, Task
from ..hunyuan_video.card import SHARED_PARTS

CARD = Card(
    id="fp",
    order=3,
    name="framepack",
    title="FramePack",
    family="FramePack",
    tool_prefix="fpack_",
    network_module="networks.lora_framepack",
    modelspec="framepack",
    implementation="https://github.com/lllyasviel/FramePack",
    lora_blocks=("HunyuanVideoTransformerBlock", "HunyuanVideoSingleTransformerBlock"),
    block_lists=("transformer_blocks.", "single_transformer_blocks."),
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
    parts=(
        Part(
            "dit",
            TRANSFORMER,
            "The transformer",
            folder="diffusion_models",
            example="FramePackI2V_HY_bf16.safetensors",
            dtype="bfloat16",
            kinds=("framepack_transformer",),
        ),
        *SHARED_PARTS,
        Part(
            "image_encoder",
            IMAGE_ENCODER,
            "The SigLIP image encoder",
            folder="clip_vision",
            example="sigclip_vision_patch14_384.safetensors",
            dtype="float16",
            kinds=("siglip",),
        ),
    ),
    comfy_lora="hv",  # ComfyUI has no FramePack
    layers_of="hv",  # which fuses some
    fp8_target=("transformer_blocks", "single_transformer_blocks"),
    fp8_exclude=("norm",),
    fps=30,
    embedded_guidance=10.0,
    latent_dtype="float16",
    window_in_bucket=True,
    control_masks=True,
    sections=True,
    length_in_seconds=True,
    dtype_tensors=("transformer_blocks.0.attn.to_q.weight",),
    text_keys=("llama_vec", "llama_attention_mask", "clip_l_pooler"),
)
