"""The recorded Wan models and small random ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from musubi_backend.architectures.wan.card import CARD
from musubi_backend.architectures.wan.model import WanGeometry, WanTransformer
from musubi_backend.lora.network import LoRANetwork
from musubi_backend.weights.safetensors_file import load
from torch import Tensor

SMALL = WanGeometry(dim=24, ffn_dim=40, num_heads=2, num_layers=3, text_dim=20, text_len=32, freq_dim=16)


Sample = tuple[Tensor, Tensor, list[Tensor]]


@pytest.fixture
def small() -> WanGeometry:
    return SMALL


@pytest.fixture
def example() -> Callable[[list[int]], Sample]:
    """example([5, 9]) -> (latents, timesteps, text) of a batch whose captions have 5 and 9 tokens; 12 video tokens each."""

    def build(lengths: list[int]) -> Sample:
        generator = torch.Generator().manual_seed(0)
        latents = torch.randn(len(lengths), 16, 2, 4, 6, generator=generator)
        return latents, torch.linspace(900, 100, len(lengths)), [torch.randn(n, SMALL.text_dim, generator=generator) for n in lengths]

    return build


@pytest.fixture
def recorded(shared: Path) -> Callable[[str], dict[str, Tensor]]:
    """recorded("wan21_t2v.io") -> the tensors of that file in golden/dit."""
    return lambda name: load(shared / "golden" / "dit" / f"{name}.safetensors")


@pytest.fixture
def model_with_lora() -> Callable[..., tuple[WanTransformer, LoRANetwork]]:
    """A small random model whose LoRA is not zero; every call gives the same weights."""

    def build(geometry: WanGeometry = SMALL, dtype: torch.dtype = torch.float32, **lora: object) -> tuple[WanTransformer, LoRANetwork]:
        generator = torch.Generator().manual_seed(3)
        model = WanTransformer(geometry)
        fill(model.parameters(), generator)
        model.to(dtype).requires_grad_(False).eval()
        network = LoRANetwork.create(model, CARD, rank=3, alpha=2.0, **lora)  # type: ignore[arg-type]
        fill(network.parameters(), generator)
        return model, network

    return build


def fill(parameters: object, generator: torch.Generator) -> None:
    with torch.no_grad():
        for parameter in parameters:  # type: ignore[attr-defined]
            scale = 0.1 if parameter.ndim == 1 else parameter[0].numel() ** -0.5
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
