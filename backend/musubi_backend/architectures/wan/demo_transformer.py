"""A tiny Wan transformer that a LoRA can teach (see `demo.teachable`)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from ...demo.teachable import ANCHOR, BLOCK_GAIN, HEAD_GAIN, basis

if TYPE_CHECKING:
    import torch
    from torch import Tensor

DIM, FFN_DIM, HEADS, LAYERS = 128, 256, 4, 2
TIME_GAIN = 0.1
"""Size of the time features. They also shift the head's input, where large random values would be noise in the output."""
MODULATION_GAIN = 2.0
EXTRA_GAIN = 0.5
"""Size of the extra channels (a start image, a control video) in the stream, relative to the input: seen, but not in its way."""


def wan_transformer(
    text_dim: int, seed: int, *, in_dim: int = 16, image_dim: int | None = None, images: int = 0
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """(tensors in the original layout, float32; metadata with the sizes).

    in_dim: channels of the input, those beyond 16 lie in the part of the stream that the input leaves free. image_dim: width of image
    features; images: how many images have positions of their own (2 for first and last frame). Orthogonal matrices are made in
    float64, so that the rounding of different linear algebra kernels does not show and a seed always gives the same file."""
    import torch

    from ...weights.geometry import GEOMETRY_KEY
    from .geometry import WanGeometry
    from .model import IMAGE_TOKENS, WanTransformer

    geometry = WanGeometry(
        dim=DIM, ffn_dim=FFN_DIM, num_heads=HEADS, num_layers=LAYERS, in_dim=in_dim, text_dim=text_dim, image_dim=image_dim,
        image_positions=images * IMAGE_TOKENS,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(seed)
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in WanTransformer(geometry).state_dict().items()}
    directions = basis(DIM, generator)
    patch = 4 * geometry.out_dim
    embedding, anchor = directions[:, :patch], directions[:, patch] * ANCHOR * math.sqrt(patch)
    extra = _extra(directions[:, patch + 1 :], 4 * in_dim - patch, generator)
    fixed = {
        "patch_embedding.weight": torch.cat([embedding, extra], dim=1).reshape(shapes["patch_embedding.weight"]),
        "patch_embedding.bias": anchor,
        "head.head.weight": _head(embedding, geometry.out_dim),
    }
    return {name: fixed[name] if name in fixed else _initial(name, shape, generator) for name, shape in shapes.items()}, {
        GEOMETRY_KEY: geometry.to_json()
    }


def _extra(free: Tensor, inputs: int, generator: torch.Generator) -> Tensor:
    """Columns [dim, inputs] for further input channels, in the directions `free` [dim, n] of the stream."""
    import torch

    mixed = torch.randn(free.shape[1], inputs, generator=generator) * free.shape[1] ** -0.5
    result: Tensor = free @ mixed * EXTRA_GAIN
    return result


def _head(embedding: Tensor, channels: int) -> Tensor:
    """The inverse of the embedding [dim, channels * 4] behind the head's layer norm; rows in the head's order (patch, channel)."""
    dim = embedding.shape[0]
    norm = math.sqrt(channels * 4 * (1 + ANCHOR**2)) / math.sqrt(dim)
    return embedding.reshape(dim, channels, 4).permute(2, 1, 0).reshape(4 * channels, dim) * (norm * HEAD_GAIN)


def _initial(name: str, shape: torch.Size, generator: torch.Generator) -> Tensor:
    import torch

    if name.endswith(("norm_q.weight", "norm_k.weight", "norm_k_img.weight", "norm3.weight", "proj.0.weight", "proj.4.weight")):
        return torch.ones(shape)
    if name.endswith("emb_pos"):
        return torch.randn(shape, generator=generator)
    if name.endswith("modulation"):
        value = 0.02 * torch.randn(shape, generator=generator)
        if name.startswith("blocks."):
            value[:, [2, 5]] += 1  # the gates
        return value
    if len(shape) == 1:
        return torch.zeros(shape)
    gains = {
        ".o.weight": BLOCK_GAIN,
        "ffn.2.weight": BLOCK_GAIN,
        "time_embedding.2.weight": TIME_GAIN,
        "time_projection.1.weight": MODULATION_GAIN,
    }
    gain = next((gain for ending, gain in gains.items() if name.endswith(ending)), 1.0)
    return torch.nn.init.orthogonal_(torch.empty(shape, dtype=torch.float64), gain, generator=generator).float()
