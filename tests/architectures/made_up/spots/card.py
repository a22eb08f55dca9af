"""Facts about Spots, which exist only to show what an architecture of pictures says: no time in its latents, no length, no video."""

from __future__ import annotations

from dataclasses import replace

from ..card import IMAGE
from ..dots.card import CARD as DOTS

CARD = replace(
    DOTS, id="spots", name="spots", title="Spots 2.0", family="Spots 2.0", tool_prefix="spots_", makes=IMAGE, latent_rank=3, frame_stride=1
)
