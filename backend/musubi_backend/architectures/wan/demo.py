"""Which tiny files make up a Wan model of each kind. No torch: makers are imported when a file is to be written."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...demo.parts import Part

if TYPE_CHECKING:
    from ...demo.parts import Content
    from ..card import Task

TEXT_DIM = 64
IMAGE_DIM = 32


def _transformer(seed: int, in_dim: int = 16, image: bool = False, images: int = 0) -> Content:
    from .demo_transformer import wan_transformer

    return wan_transformer(TEXT_DIM, seed, in_dim=in_dim, image_dim=IMAGE_DIM if image else None, images=images)


def _vae(seed: int) -> Content:
    from .demo_vae import wan_vae

    return wan_vae(), {}


def _t5(seed: int) -> Content:
    from ...demo.umt5 import umt5

    return umt5(TEXT_DIM, seed), {}


def _clip(seed: int) -> Content:
    from ...demo.clip_vision import clip_vision

    return clip_vision(IMAGE_DIM, seed)


_SHARED = {"vae": Part("demo_wan_vae.safetensors", _vae, "bfloat16"), "t5": Part("demo_umt5.safetensors", _t5, "float16")}
_CLIP = {"clip": Part("demo_clip_vision.safetensors", _clip, "float16")}


def _dit(name: str, dtype: str, in_dim: int = 16, image: bool = False, images: int = 0, other_seed: int = 0) -> Part:
    return Part(f"demo_wan_{name}.safetensors", lambda seed: _transformer(seed + other_seed, in_dim, image, images), dtype)


def _experts(name: str, in_dim: int) -> dict[str, Part]:
    """The two models of Wan2.2: with weights of their own, as the real ones."""
    low, high = _dit(f"{name}_low", "float16", in_dim), _dit(f"{name}_high", "float16", in_dim, other_seed=1_000_003)
    return {"dit": low, "dit_high_noise": high, **_SHARED}


KINDS = {
    "wan": {"dit": _dit("t2v", "bfloat16"), **_SHARED},
    "wan_i2v": {"dit": _dit("i2v", "float16", 36, image=True), **_SHARED, **_CLIP},
    "wan_flf2v": {"dit": _dit("flf2v", "float16", 36, image=True, images=2), **_SHARED, **_CLIP},
    "wan_fc": {"dit": _dit("fc", "bfloat16", 48, image=True), **_SHARED, **_CLIP},
    "wan22": _experts("22_t2v", 16),
    "wan22_i2v": _experts("22_i2v", 36),
}
"""Kind -> part (the name of its option) -> file. `wan_fc` serves both Fun-Control tasks."""
ABOUT = (
    "wan makes video from text, wan_i2v from a first frame, wan_flf2v from first and last frame, wan_fc follows a control video; wan22 and "
    "wan22_i2v are Wan2.2's two experts"
)


def kind_for(task: Task) -> str:
    """The kind that stands in for the real models of a task."""
    if task.boundary is not None:
        return "wan22_i2v" if task.start_image else "wan22"
    if task.control:
        return "wan_fc"
    if task.last_frame:
        return "wan_flf2v"
    return "wan_i2v" if task.start_image else "wan"
