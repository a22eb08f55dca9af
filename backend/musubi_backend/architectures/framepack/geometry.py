"""Names and sizes in FramePack weight files. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ...weights.geometry import Shapes
from ...weights.safetensors_file import Header
from ..hunyuan_video.geometry import JointGeometry, Landmarks, joint_sizes

PREFIXES = ("model.diffusion_model.", "diffusion_model.", "transformer.")


@dataclass(frozen=True)
class FramePackGeometry(JointGeometry):
    """Sizes of a FramePack transformer. image_dim is the width of SigLIP's features."""

    image_dim: int = 1152


_LANDMARKS = Landmarks(
    "x_embedder.proj.weight",
    "transformer_blocks.0.attn.norm_q.weight",
    "transformer_blocks.0.ff.net.0.proj.weight",
    "transformer_blocks",
    "single_transformer_blocks",
    "proj_out.weight",
    "context_embedder.proj_in.weight",
    "time_text_embed.text_embedder.linear_1.weight",
    "context_embedder.token_refiner.refiner_blocks",
)


def geometry_of(header: Header) -> FramePackGeometry:
    """Sizes from the shapes in a header without prefix, or what its metadata says. UserError where the file is not complete."""
    return FramePackGeometry.of(header, "FramePack", _measured)


def _measured(shapes: Shapes) -> dict[str, Any]:
    return {**joint_sizes(shapes, _LANDMARKS), "image_dim": shapes["image_projection.up.weight"][1]}
