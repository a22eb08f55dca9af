"""Names and sizes in FramePack weight files. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass

from ...errors import UserError
from ...weights.geometry import GEOMETRY_KEY, StoredGeometry
from ...weights.safetensors_file import Header
from ..hunyuan_video.geometry import count_blocks, rope_widths

PREFIXES = ("model.diffusion_model.", "diffusion_model.", "transformer.")


@dataclass(frozen=True)
class FramePackGeometry(StoredGeometry):
    """Sizes of a FramePack transformer. image_dim is the width of SigLIP's features."""

    dim: int
    num_heads: int
    mlp_dim: int
    num_double_layers: int
    num_single_layers: int
    in_dim: int = 16
    out_dim: int = 16
    text_dim: int = 4096
    pooled_dim: int = 768
    image_dim: int = 1152
    num_refiner_layers: int = 2
    rope_widths: tuple[int, int, int] = (16, 56, 56)


def geometry_of(header: Header) -> FramePackGeometry:
    """Sizes from the shapes in a header without prefix, or what its metadata says. UserError where the file is not complete."""
    if GEOMETRY_KEY in header.metadata:
        return FramePackGeometry.from_json(header.metadata[GEOMETRY_KEY])
    shapes = {name: info.shape for name, info in header.tensors.items()}
    try:
        dim, in_dim = shapes["x_embedder.proj.weight"][:2]
        head_dim = shapes["transformer_blocks.0.attn.norm_q.weight"][0]
        return FramePackGeometry(
            dim=dim,
            num_heads=dim // head_dim,
            mlp_dim=shapes["transformer_blocks.0.ff.net.0.proj.weight"][0],
            num_double_layers=count_blocks(shapes, "transformer_blocks"),
            num_single_layers=count_blocks(shapes, "single_transformer_blocks"),
            in_dim=in_dim,
            out_dim=shapes["proj_out.weight"][0] // 4,
            text_dim=shapes["context_embedder.proj_in.weight"][1],
            pooled_dim=shapes["time_text_embed.text_embedder.linear_1.weight"][1],
            image_dim=shapes["image_projection.up.weight"][1],
            num_refiner_layers=count_blocks(shapes, "context_embedder.token_refiner.refiner_blocks"),
            rope_widths=rope_widths(head_dim),
        )
    except (KeyError, ValueError, IndexError) as error:
        raise UserError(f"the weight file lacks {error}, which every FramePack transformer has; is it complete?") from error
