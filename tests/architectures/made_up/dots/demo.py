"""Which tiny files make up a Dots model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...demo.parts import Part

if TYPE_CHECKING:
    from ...demo.parts import Content
    from ..card import Task


def _transformer(seed: int) -> Content:
    import torch

    from .adapter import DotsTransformer

    torch.manual_seed(seed)
    return DotsTransformer().state_dict(), {}


def _nothing(seed: int) -> Content:
    import torch

    return {"nothing": torch.zeros(1)}, {}


KINDS = {
    "dots": {
        "dit": Part("demo_dots.safetensors", _transformer, "float32"),
        "vae": Part("demo_dots_vae.safetensors", _nothing, "float32"),
    }
}
ABOUT = "dots is Dots"


def kind_for(task: Task) -> str:
    """The kind that stands in for the real models of a task."""
    return "dots"
