"""Small random HunyuanVideo models."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import pytest
import torch
from musubi_backend.architectures.hunyuan_video.card import CARD
from musubi_backend.architectures.hunyuan_video.model import HunyuanGeometry, HunyuanTransformer
from musubi_backend.lora.network import LoRANetwork

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


@pytest.fixture(scope="session")
def comfy_name() -> Callable[[str], str]:
    """What ComfyUI calls a tensor of the original file."""
    return _comfy_name


def _comfy_name(name: str) -> str:
    replacements = (
        ("txt_in.t_embedder.mlp.0.", "txt_in.t_embedder.in_layer."), ("txt_in.t_embedder.mlp.2.", "txt_in.t_embedder.out_layer."),
        ("c_embedder.linear_1.", "c_embedder.in_layer."), ("c_embedder.linear_2.", "c_embedder.out_layer."),
        ("_mod.linear.", "_mod.lin."), (".modulation.linear.", ".modulation.lin."), ("_attn_qkv.", "_attn.qkv."),
        ("_attn_proj.", "_attn.proj."),
        ("mlp.fc1.", "mlp.0."), ("mlp.fc2.", "mlp.2."), ("_attn_q_norm.weight", "_attn.norm.query_norm.scale"),
        ("_attn_k_norm.weight", "_attn.norm.key_norm.scale"), (".q_norm.weight", ".norm.query_norm.weight"),
        (".k_norm.weight", ".norm.key_norm.weight"), ("_in.mlp.0.", "_in.in_layer."), ("_in.mlp.2.", "_in.out_layer."),
    )  # fmt: skip
    for ours, theirs in replacements:
        name = name.replace(ours, theirs)
    return name


def fill(parameters: Iterable[torch.Tensor], generator: torch.Generator) -> None:
    with torch.no_grad():
        for parameter in parameters:
            scale = 0.1 if parameter.ndim == 1 else parameter[0].numel() ** -0.5
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
