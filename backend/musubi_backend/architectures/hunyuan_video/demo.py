"""Which tiny files make up a HunyuanVideo model. No torch: makers are imported when a file is to be written."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...demo.parts import Part

if TYPE_CHECKING:
    from ...demo.parts import Content
    from ..card import Task


def _transformer(seed: int, in_dim: int) -> Content:
    from ...demo.encoders import CLIP_WIDTH, LLM_WIDTH
    from .demo_transformer import hunyuan_transformer

    return hunyuan_transformer(LLM_WIDTH, CLIP_WIDTH, seed, in_dim)


def _vae(seed: int) -> Content:
    from .demo_vae import hunyuan_vae

    return hunyuan_vae()


def _llama(seed: int) -> Content:
    from ...demo.encoders import llama

    return llama(seed)


def _clip_l(seed: int) -> Content:
    from ...demo.encoders import clip_l

    return clip_l(seed)


SHARED = {
    "vae": Part("demo_hunyuan_video_vae.safetensors", _vae, "bfloat16"),
    "text_encoder1": Part("demo_llava_llama3.safetensors", _llama, "float16"),
    "text_encoder2": Part("demo_clip_l.safetensors", _clip_l, "float16"),
}


def _dit(name: str, in_dim: int) -> Part:
    return Part(f"demo_hunyuan_video_{name}.safetensors", lambda seed: _transformer(seed, in_dim), "bfloat16")


KINDS = {
    "hv": {"dit": _dit("t2v", 16), **SHARED},
    "hv_i2v": {"dit": _dit("i2v", 32), **SHARED},
}
"""Kind -> part (the name of its option) -> file."""
ABOUT = "hv is HunyuanVideo, hv_i2v its image-to-video kind"


def kind_for(task: Task) -> str:
    """The kind that stands in for the real models of a task."""
    return "hv"
