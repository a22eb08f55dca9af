"""Which tiny files make up a FramePack model. No torch: makers are imported when a file is to be written."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...demo.parts import Part
from ..hunyuan_video.demo import SHARED

if TYPE_CHECKING:
    from ...demo.parts import Content
    from ..card import Task


def _transformer(seed: int) -> Content:
    from ...demo.encoders import CLIP_WIDTH, IMAGE_WIDTH, LLM_WIDTH
    from .demo_transformer import framepack_transformer

    return framepack_transformer(LLM_WIDTH, CLIP_WIDTH, IMAGE_WIDTH, seed)


def _siglip(seed: int) -> Content:
    from ...demo.encoders import siglip

    return siglip(seed)


KINDS = {
    "fp": {
        "dit": Part("demo_framepack.safetensors", _transformer, "bfloat16"),
        **SHARED,
        "image_encoder": Part("demo_siglip.safetensors", _siglip, "float16"),
    },
}
"""Kind -> part (the name of its option) -> file."""
ABOUT = "fp is FramePack"


def kind_for(task: Task) -> str:
    """The kind that stands in for the real models of a task."""
    return "fp"
