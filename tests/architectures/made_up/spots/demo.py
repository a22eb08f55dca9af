"""Which tiny files make up each model of Spots."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...demo.parts import Part

if TYPE_CHECKING:
    from ...demo.parts import Content
    from ..card import Task


def _transformer(seed: int, edits: bool) -> Content:
    import torch

    from .adapter import SpotsTransformer

    torch.manual_seed(seed)
    return SpotsTransformer(edits).state_dict(), {}


def _ones(name: str) -> Content:
    import torch

    return {name: torch.ones(1)}, {}


_VAE = Part("demo_spots_vae.safetensors", lambda seed: _ones("nothing"), "float32")
_LETTERS = Part("demo_alphabet.safetensors", lambda seed: _ones("letters"), "float32")
_WORDS = Part("demo_dictionary.safetensors", lambda seed: _ones("words"), "float32")
KINDS = {
    "spots": {"dit": Part("demo_spots.safetensors", lambda seed: _transformer(seed, False), "float32"), "vae": _VAE, "alphabet": _LETTERS},
    "spots_edit": {
        "dit": Part("demo_spots_edit.safetensors", lambda seed: _transformer(seed, True), "float32"),
        "vae": _VAE,
        "alphabet": _LETTERS,
        "dictionary": _WORDS,
    },
}
ABOUT = "spots makes images, spots_edit changes them"


def kind_for(task: Task) -> str:
    """The kind that stands in for the real models of a task."""
    return "spots_edit" if task.control else "spots"
