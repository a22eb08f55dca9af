"""Which tiny files make up a HunyuanVideo or FramePack model. No torch: makers are imported when a file is to be written."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .demo_parts import Part

if TYPE_CHECKING:
    from .demo_parts import Content


def _transformer(seed: int, in_dim: int) -> Content:
    from .demo_hunyuan_encoders import CLIP_WIDTH, LLM_WIDTH
    from .demo_hunyuan_transformers import hunyuan_transformer

    return hunyuan_transformer(LLM_WIDTH, CLIP_WIDTH, seed, in_dim)


def _framepack(seed: int) -> Content:
    from .demo_hunyuan_encoders import CLIP_WIDTH, IMAGE_WIDTH, LLM_WIDTH
    from .demo_hunyuan_transformers import framepack_transformer

    return framepack_transformer(LLM_WIDTH, CLIP_WIDTH, IMAGE_WIDTH, seed)


def _vae(seed: int) -> Content:
    from .demo_hunyuan_vae import hunyuan_vae

    return hunyuan_vae()


def _llama(seed: int) -> Content:
    from .demo_hunyuan_encoders import llama

    return llama(seed)


def _clip_l(seed: int) -> Content:
    from .demo_hunyuan_encoders import clip_l

    return clip_l(seed)


def _siglip(seed: int) -> Content:
    from .demo_hunyuan_encoders import siglip

    return siglip(seed)


_SHARED = {
    "vae": Part("demo_hunyuan_video_vae.safetensors", _vae, "bfloat16"),
    "text_encoder1": Part("demo_llava_llama3.safetensors", _llama, "float16"),
    "text_encoder2": Part("demo_clip_l.safetensors", _clip_l, "float16"),
}


def _dit(name: str, in_dim: int) -> Part:
    return Part(f"demo_hunyuan_video_{name}.safetensors", lambda seed: _transformer(seed, in_dim), "bfloat16")


KINDS = {
    "hv": {"dit": _dit("t2v", 16), **_SHARED},
    "hv_i2v": {"dit": _dit("i2v", 32), **_SHARED},
    "fp": {
        "dit": Part("demo_framepack.safetensors", _framepack, "bfloat16"),
        **_SHARED,
        "image_encoder": Part("demo_siglip.safetensors", _siglip, "float16"),
    },
}
"""Kind -> part (the name of its option) -> file."""
