"""Facts about Spots, which exist only to show what an architecture of images says: no time in its latents, no length, no video, and a
second transformer that only samples use."""

from __future__ import annotations

from dataclasses import replace

from ..card import IMAGE, TRANSFORMER, Part
from ..dots.card import CARD as DOTS

_QUICK = Part(
    "dit_quick", TRANSFORMER, "The quick transformer", "diffusion_models", "quick.safetensors", "float32", kinds=("dots_transformer",),
    only_for="samples while training",
)  # fmt: skip

CARD = replace(
    DOTS,
    id="spots",
    name="spots",
    title="Spots 2.0",
    family="Spots 2.0",
    tool_prefix="spots_",
    parts=(*DOTS.parts, _QUICK),
    layers_of="dots",
    makes=IMAGE,
    latent_rank=3,
    frame_stride=1,
)
