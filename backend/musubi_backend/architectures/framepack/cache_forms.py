"""What FramePack's caches are like. No torch."""

from __future__ import annotations

from ...cache.forms import FRAMES, HEIGHT, WIDTH, CacheForms, floats, main_latents, mask, whole
from .card import CARD
from .geometry import FramePackGeometry

MIDDLE, FAR = 2, 16
"""Frames of the coarser history."""


def cache_forms(geometry: FramePackGeometry) -> CacheForms:
    """The coarser history may be left out, or be only times: it is empty then."""
    channels = CARD.latent_channels
    latents = {
        **main_latents(channels),
        "latent_indices": whole((FRAMES,)),
        "latents_clean": floats((channels, "clean frames", HEIGHT, WIDTH)),
        "clean_latent_indices": whole(("clean frames",)),
        "image_embeddings": floats((None, geometry.image_dim)),
    }
    for part, frames in (("2x", MIDDLE), ("4x", FAR)):
        latents[f"clean_latent_{part}_indices"] = whole((frames,), optional=True)
        latents[f"latents_clean_{part}"] = floats((channels, frames, HEIGHT, WIDTH), optional=True)
    texts = {
        "llama_vec": floats(("tokens", geometry.text_dim)),
        "llama_attention_mask": mask(("tokens",)),
        "clip_l_pooler": floats((geometry.pooled_dim,)),
    }
    return CacheForms(latents, texts)
