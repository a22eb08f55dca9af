"""A tiny FramePack transformer that a LoRA can teach (see `demo.teachable`). History patches are the mean of the small patches they
stand for, as its makers began."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...weights.geometry import GEOMETRY_KEY
from ..hunyuan_video.demo_transformer import DIM, DOUBLE_LAYERS, HEADS, MLP_DIM, ROPE_WIDTHS, SINGLE_LAYERS, filled

if TYPE_CHECKING:
    from ...demo.parts import Content


def framepack_transformer(text_dim: int, pooled_dim: int, image_dim: int, seed: int) -> Content:
    """(tensors in the original layout, float32; metadata with the sizes)."""
    from .geometry import FramePackGeometry
    from .model import FramePackTransformer

    geometry = FramePackGeometry(
        dim=DIM, num_heads=HEADS, mlp_dim=MLP_DIM, num_double_layers=DOUBLE_LAYERS, num_single_layers=SINGLE_LAYERS,
        text_dim=text_dim, pooled_dim=pooled_dim, image_dim=image_dim, num_refiner_layers=1, rope_widths=ROPE_WIDTHS,
    )  # fmt: skip
    tensors = filled(FramePackTransformer, geometry, "x_embedder.proj", "proj_out", seed)
    weight, bias = tensors["x_embedder.proj.weight"], tensors["x_embedder.proj.bias"]
    for name, times in (("proj", 1), ("proj_2x", 2), ("proj_4x", 4)):
        tensors[f"clean_x_embedder.{name}.weight"] = weight.repeat(1, 1, times, times, times) / times**3
        tensors[f"clean_x_embedder.{name}.bias"] = bias.clone()
    return tensors, {GEOMETRY_KEY: geometry.to_json()}
