"""Facts about Wan2.1 and Wan2.2 A14B (sizes: github.com/Wan-Video/Wan2.1 and Wan2.2, `wan/configs`)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ..card import EXPERT, IMAGE_ENCODER, TEXT_ENCODER, TRANSFORMER, VAE, Card, Part, Task

_SMALL = Task("", dim=1536, ffn_dim=8960, num_heads=12, num_layers=30, in_dim=16)
_LARGE = Task("", dim=5120, ffn_dim=13824, num_heads=40, num_layers=40, in_dim=16)

_START: dict[str, Any] = {"in_dim": 36, "start_image": True, "steps": 40}
_CLIP: dict[str, Any] = {"image_encoder": True}
_CALMER: dict[str, Any] = {"flow_shift_480p": 3.0}
_CONTROL: dict[str, Any] = {"in_dim": 48, "image_encoder": True, "control": True}

NEGATIVE_PROMPT = (
    "色调艳丽，过曝，静态，细节模糊不清，字幕，风格，作品，画作，画面，静止，整体发灰，最差质量，低质量，JPEG压缩残留，丑陋的，残缺的，多余的手指，"
    "画得不好的手部，画得不好的脸部，畸形的，毁容的，形态畸形的肢体，手指融合，静止不动的画面，杂乱的背景，三条腿，背景人很多，倒着走"
)

_TASKS = (
    replace(_LARGE, name="t2v-14B"),
    replace(_SMALL, name="t2v-1.3B"),
    replace(_LARGE, name="i2v-14B", **_START, **_CLIP, **_CALMER),
    replace(_LARGE, name="t2i-14B", frames=1),
    replace(_LARGE, name="flf2v-14B", last_frame=True, negative_prompt="镜头切换，" + NEGATIVE_PROMPT, **_START, **_CLIP),
    replace(_SMALL, name="t2v-1.3B-FC", **_CONTROL),
    replace(_LARGE, name="t2v-14B-FC", **_CONTROL),
    replace(_LARGE, name="i2v-14B-FC", **{**_START, **_CONTROL, **_CALMER}),
    replace(_LARGE, name="i2v-A14B", boundary=0.9, guidance_scale=3.5, guidance_scale_high_noise=3.5, **_START),
    replace(
        _LARGE,
        name="t2v-A14B",
        boundary=0.875,
        steps=40,
        flow_shift=12.0,
        guidance_scale=3.0,
        guidance_scale_high_noise=4.0,
    ),
)

CARD = Card(
    id="wan",
    order=1,
    name="wan",
    title="Wan2.1",
    family="Wan",
    tool_prefix="wan_",
    network_module="networks.lora_wan",
    modelspec="wan2.1",
    implementation="https://github.com/Wan-Video/Wan2.1",
    lora_blocks=("WanAttentionBlock",),
    block_lists=("blocks.",),
    lora_exclude=r".*(patch_embedding|text_embedding|time_embedding|time_projection|norm|head).*",
    tasks=_TASKS,
    parts=(
        Part(
            "dit",
            TRANSFORMER,
            "The transformer; of Wan2.2 the low-noise one",
            folder="diffusion_models",
            example="wan2.1_t2v_1.3B_bf16.safetensors",
            dtype="bfloat16",
            kinds=("wan_transformer",),
            published=("low_noise_model/diffusion_pytorch_model*.safetensors", "diffusion_pytorch_model*.safetensors"),
        ),
        Part(
            "vae",
            VAE,
            "The Wan VAE",
            folder="vae",
            example="wan_2.1_vae.safetensors",
            dtype="bfloat16",
            kinds=("wan_vae",),
            published=("Wan2.1_VAE.pth",),
        ),
        Part(
            "t5",
            TEXT_ENCODER,
            "The umt5-xxl text encoder",
            folder="text_encoders",
            example="umt5_xxl_fp16.safetensors",
            dtype="float16",
            kinds=("umt5",),
            published=("models_t5_umt5-xxl-enc-bf16.pth",),
        ),
        Part(
            "clip",
            IMAGE_ENCODER,
            "The CLIP image encoder",
            folder="clip_vision",
            example="clip_vision_h.safetensors",
            dtype="float16",
            kinds=("clip_vision",),
            published=("models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth",),
            tasks=tuple(task.name for task in _TASKS if task.image_encoder),
            only_for="i2v and flf2v of Wan2.1, and FC",
        ),
        Part(
            "dit_high_noise",
            EXPERT,
            "The high-noise transformer",
            folder="diffusion_models",
            example="wan2.2_t2v_high_noise_14B_fp16.safetensors",
            dtype="float16",
            kinds=("wan_transformer",),
            published=("high_noise_model/diffusion_pytorch_model*.safetensors",),
            tasks=tuple(task.name for task in _TASKS if task.boundary is not None),
            only_for="Wan2.2 (A14B); without it only one expert is trained or used",
        ),
    ),
    two_experts="Wan2.2",
    fp8_target=("blocks",),
    fp8_exclude=("norm", "patch_embedding", "text_embedding", "time_embedding", "time_projection", "head", "modulation", "img_emb"),
    dtype_tensors=("blocks.0.cross_attn.k.weight",),
    keeps_16_bits=True,
    text_keys=("t5",),
    negative_prompt=NEGATIVE_PROMPT,
    window_in_bucket=True,
)
