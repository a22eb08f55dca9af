"""A Wan transformer small enough to sample with in milliseconds, and the demo models."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from musubi_backend.architectures.wan.model import WanGeometry, WanTransformer
from musubi_backend.demo.models import write_models

TEXT_DIM = 32


@pytest.fixture(scope="session")
def tiny_transformer() -> WanTransformer:
    """Random weights, two blocks, float32."""
    model = WanTransformer(WanGeometry(dim=32, ffn_dim=64, num_heads=2, num_layers=2, text_dim=TEXT_DIM, text_len=16, freq_dim=32))
    generator = torch.Generator().manual_seed(5)
    for name, parameter in sorted(model.named_parameters()):
        scale = parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.1
        torch.nn.init.normal_(parameter, std=scale, generator=generator)
        if "norm" in name:
            parameter.data += 1
    return model.requires_grad_(False).eval()


@pytest.fixture
def text() -> dict[str, torch.Tensor]:
    return {"varlen_t5": torch.randn(7, TEXT_DIM, generator=torch.Generator().manual_seed(1))}


@pytest.fixture
def negative_text() -> dict[str, torch.Tensor]:
    return {"varlen_t5": torch.randn(4, TEXT_DIM, generator=torch.Generator().manual_seed(2))}


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Paths of the demo models: "dit", "vae", "t5"."""
    return write_models(tmp_path_factory.mktemp("demo models"))
