"""Names and sizes in HunyuanVideo weight files. Standard library only."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from ...weights.geometry import Shapes, StoredGeometry, count_blocks
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
class JointGeometry(StoredGeometry):
    """Sizes of a transformer of joint video and text blocks: what HunyuanVideo and FramePack have alike."""

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
    rope_widths: tuple[int, int, int] = (16, 56, 56)


@dataclass(frozen=True)
class Landmarks:
    """The tensors that sizes are read from, and the lists of blocks that are counted."""

    image_in: str
    head_norm: str
    mlp: str
    double_blocks: str
    single_blocks: str
    out: str
    text_in: str
    pooled_in: str
    refiner_blocks: str


@dataclass(frozen=True)
class HunyuanGeometry(JointGeometry):
    """Sizes of a HunyuanVideo transformer. guidance: it is distilled and takes the embedded guidance as an input."""

    guidance: bool = True

    @property
    def takes_image(self) -> bool:
        """Whether a first frame is one half of the input channels."""
        return self.in_dim > self.out_dim


_LANDMARKS = Landmarks(
    "img_in.proj.weight",
    "double_blocks.0.img_attn_q_norm.weight",
    "double_blocks.0.img_mlp.fc1.weight",
    "double_blocks",
    "single_blocks",
    "final_layer.linear.weight",
    "txt_in.input_embedder.weight",
    "vector_in.in_layer.weight",
    "txt_in.individual_token_refiner.blocks",
)


def geometry_of(header: Header) -> HunyuanGeometry:
    """Sizes from the shapes in a header (names without prefix, original or ComfyUI's), or what its metadata says. UserError where the
    file is not complete."""
    return HunyuanGeometry.of(header, "HunyuanVideo", _measured)


def _measured(shapes: Shapes) -> dict[str, Any]:
    original = {original_name(name): shape for name, shape in shapes.items()}
    return {**joint_sizes(original, _LANDMARKS), "guidance": "guidance_in.mlp.0.weight" in original}


def joint_sizes(shapes: Shapes, landmarks: Landmarks) -> dict[str, Any]:
    """The fields of `JointGeometry`; KeyError or ValueError for what is not there."""
    dim, in_dim = shapes[landmarks.image_in][:2]
    head_dim = shapes[landmarks.head_norm][0]
    return {
        "dim": dim,
        "num_heads": dim // head_dim,
        "mlp_dim": shapes[landmarks.mlp][0],
        "num_double_layers": count_blocks(shapes, landmarks.double_blocks),
        "num_single_layers": count_blocks(shapes, landmarks.single_blocks),
        "in_dim": in_dim,
        "out_dim": shapes[landmarks.out][0] // 4,
        "text_dim": shapes[landmarks.text_in][1],
        "pooled_dim": shapes[landmarks.pooled_in][1],
        "num_refiner_layers": count_blocks(shapes, landmarks.refiner_blocks),
        "rope_widths": rope_widths(head_dim),
    }


def rope_widths(head_dim: int) -> tuple[int, int, int]:
    """Channels of a head that turn with frames, height and width: 16, 56, 56 of 128, and alike for other heads."""
    side = 2 * (head_dim * 7 // 32)
    return head_dim - 2 * side, side, side


def original_name(name: str) -> str:
    """ComfyUI's name of a tensor -> the original one; original names stay."""
    for pattern, replacement in _COMFY_NAMES:
        name = re.sub(pattern, replacement, name)
    return name
