"""A tiny random CLIP image encoder in ComfyUI's layout, with as many tokens as the real one: Wan knows 257 of them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from ..weights.geometry import GEOMETRY_KEY

if TYPE_CHECKING:
    from torch import Tensor

LAYERS, HEADS, PATCH, SIDE = 2, 2, 14, 16


def clip_vision(width: int, seed: int) -> tuple[dict[str, Tensor], dict[str, str]]:
    """(tensors, float32; metadata with the number of heads) of an encoder with features of `width`."""
    import torch

    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int, std: float) -> Tensor:
        return torch.randn(shape, generator=generator) * std

    def linear(name: str, outputs: int, inputs: int) -> dict[str, Tensor]:
        return {f"{name}.weight": normal(outputs, inputs, std=inputs**-0.5), f"{name}.bias": torch.zeros(outputs)}

    def norm(name: str) -> dict[str, Tensor]:
        return {f"{name}.weight": torch.ones(width), f"{name}.bias": torch.zeros(width)}

    tensors = {
        "embeddings.class_embedding": normal(width, std=1.0),
        "embeddings.patch_embedding.weight": normal(width, 3, PATCH, PATCH, std=(3 * PATCH**2) ** -0.5),
        "embeddings.position_embedding.weight": normal(SIDE**2 + 1, width, std=0.2),
        **norm("pre_layrnorm"),
        **norm("post_layernorm"),
    }
    for layer in range(LAYERS):
        name = f"encoder.layers.{layer}"
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            tensors |= linear(f"{name}.self_attn.{part}", width, width)
        tensors |= {**norm(f"{name}.layer_norm1"), **norm(f"{name}.layer_norm2")}
        tensors |= {**linear(f"{name}.mlp.fc1", 2 * width, width), **linear(f"{name}.mlp.fc2", width, 2 * width)}
    named = {f"vision_model.{name}": tensor for name, tensor in tensors.items()}
    return named, {GEOMETRY_KEY: json.dumps({"num_attention_heads": HEADS})}
