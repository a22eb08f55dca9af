"""Small random HunyuanVideo models."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import pytest
import torch
from musubi_backend.architectures.hunyuan_video.card import CARD
from musubi_backend.architectures.hunyuan_video.model import HunyuanGeometry, HunyuanTransformer
from musubi_backend.layers.lora import LoRANetwork

SMALL = HunyuanGeometry(
    dim=24, num_heads=3, mlp_dim=40, num_double_layers=2, num_single_layers=2, text_dim=20, pooled_dim=12,
    num_refiner_layers=1, rope_widths=(4, 2, 2),
)  # fmt: skip


@pytest.fixture
def small() -> HunyuanGeometry:
    return SMALL


@pytest.fixture
def model_with_lora() -> Callable[..., tuple[HunyuanTransformer, LoRANetwork]]:
    """A small random model whose LoRA is not zero; every call gives the same weights."""

    def build(geometry: HunyuanGeometry = SMALL, dtype: torch.dtype = torch.float32) -> tuple[HunyuanTransformer, LoRANetwork]:
        generator = torch.Generator().manual_seed(3)
        model = HunyuanTransformer(geometry)
        fill(model.parameters(), generator)
        model.to(dtype).requires_grad_(False).eval()
        network = LoRANetwork.create(model, CARD, rank=3, alpha=2.0)
        fill(network.parameters(), generator)
        return model, network

    return build


def fill(parameters: Iterable[torch.Tensor], generator: torch.Generator) -> None:
    with torch.no_grad():
        for parameter in parameters:
            scale = 0.1 if parameter.ndim == 1 else parameter[0].numel() ** -0.5
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
