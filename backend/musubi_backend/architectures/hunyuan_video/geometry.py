"""Names and sizes in HunyuanVideo weight files. Standard library only."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from ...errors import UserError
from ...weights.geometry import GEOMETRY_KEY, StoredGeometry
from ...weights.safetensors_file import Header

PREFIXES = ("model.model.", "model.diffusion_model.", "diffusion_model.")

# ComfyUI's names of the layers -> the original ones
_COMFY_NAMES = (
    (r"^txt_in\.c_embedder\.in_layer\.", "txt_in.c_embedder.linear_1."),
    (r"^txt_in\.c_embedder\.out_layer\.", "txt_in.c_embedder.linear_2."),
    (r"^(txt_in\.t_embedder|time_in|guidance_in)\.in_layer\.", r"\1.mlp.0."),
    (r"^(txt_in\.t_embedder|time_in|guidance_in)\.out_layer\.", r"\1.mlp.2."),
    (r"_mod\.lin\.", "_mod.linear."),
    (r"\.modulation\.lin\.", ".modulation.linear."),
    (r"_attn\.(qkv|proj)\.", r"_attn_\1."),
    (r"_attn\.norm\.(q|k)(?:uery|ey)_norm\.(?:weight|scale)$", r"_attn_\1_norm.weight"),
    (r"\.norm\.(q|k)(?:uery|ey)_norm\.(?:weight|scale)$", r".\1_norm.weight"),
    (r"((?:img|txt)_mlp|blocks\.\d+\.mlp)\.0\.", r"\1.fc1."),
    (r"((?:img|txt)_mlp|blocks\.\d+\.mlp)\.2\.", r"\1.fc2."),
)


@dataclass(frozen=True)
class HunyuanGeometry(StoredGeometry):
    """Sizes of a HunyuanVideo transformer. guidance: it is distilled and takes the embedded guidance as an input."""

    dim: int
    num_heads: int
    mlp_dim: int
    num_double_layers: int
    num_single_layers: int
    in_dim: int = 16
    out_dim: int = 16
    text_dim: int = 4096
    pooled_dim: int = 768
    num_refiner_layers: int = 2
    guidance: bool = True
    rope_widths: tuple[int, int, int] = (16, 56, 56)

    @property
    def takes_image(self) -> bool:
        """Whether a first frame is one half of the input channels."""
        return self.in_dim > self.out_dim


def geometry_of(header: Header) -> HunyuanGeometry:
    """Sizes from the shapes in a header (names without prefix, original or ComfyUI's), or what its metadata says. UserError where the
    file is not complete."""
    if GEOMETRY_KEY in header.metadata:
        return HunyuanGeometry.from_json(header.metadata[GEOMETRY_KEY])
    shapes = {original_name(name): info.shape for name, info in header.tensors.items()}
    try:
        dim, in_dim = shapes["img_in.proj.weight"][:2]
        head_dim = shapes["double_blocks.0.img_attn_q_norm.weight"][0]
        return HunyuanGeometry(
            dim=dim,
            num_heads=dim // head_dim,
            mlp_dim=shapes["double_blocks.0.img_mlp.fc1.weight"][0],
            num_double_layers=count_blocks(shapes, "double_blocks"),
            num_single_layers=count_blocks(shapes, "single_blocks"),
            in_dim=in_dim,
            out_dim=shapes["final_layer.linear.weight"][0] // 4,
            text_dim=shapes["txt_in.input_embedder.weight"][1],
            pooled_dim=shapes["vector_in.in_layer.weight"][1],
            num_refiner_layers=count_blocks(shapes, "txt_in.individual_token_refiner.blocks"),
            guidance="guidance_in.mlp.0.weight" in shapes,
            rope_widths=rope_widths(head_dim),
        )
    except (KeyError, ValueError, IndexError) as error:
        raise UserError(f"the weight file lacks {error}, which every HunyuanVideo transformer has; is it complete?") from error


def count_blocks(names: Iterable[str], blocks: str) -> int:
    """How many blocks a list of that name has; ValueError where there is none."""
    numbers = [int(match[1]) for name in names if (match := re.match(rf"{re.escape(blocks)}\.(\d+)\.", name))]
    if not numbers:
        raise ValueError(f"{blocks}.0")
    return 1 + max(numbers)


def rope_widths(head_dim: int) -> tuple[int, int, int]:
    """Channels of a head that turn with frames, height and width: 16, 56, 56 of 128, and alike for other heads."""
    side = 2 * (head_dim * 7 // 32)
    return head_dim - 2 * side, side, side


def original_name(name: str) -> str:
    """ComfyUI's name of a tensor -> the original one; original names stay."""
    for pattern, replacement in _COMFY_NAMES:
        name = re.sub(pattern, replacement, name)
    return name
