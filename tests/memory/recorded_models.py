"""The recorded transformers of every family, each with its inputs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from musubi_backend.architectures import cards
from musubi_backend.architectures.framepack import geometry as framepack
from musubi_backend.architectures.framepack.model import Clean, FramePackTransformer
from musubi_backend.architectures.hunyuan_video import geometry as hunyuan
from musubi_backend.architectures.hunyuan_video.model import HunyuanTransformer
from musubi_backend.architectures.wan.model import WanGeometry, WanTransformer
from musubi_backend.lora.network import LoRANetwork
from musubi_backend.memory.fp8 import hold_in_fp8
from musubi_backend.memory.plan import fp8_layers
from musubi_backend.memory.w8a8 import hold_in_8_bits
from musubi_backend.weights.loader import load_into, open_weights
from musubi_backend.weights.safetensors_file import load, read_header
from torch import Tensor, nn


class Case(NamedTuple):
    card: str
    file: str
    build: Callable[[Any], nn.Module]
    inputs: Callable[[dict[str, Tensor]], tuple[Any, ...]]


def _wan(io: dict[str, Tensor]) -> tuple[Any, ...]:
    return io["x"], io["t"], [io[name] for name in sorted(io) if name.startswith("context.")]


def _hunyuan(io: dict[str, Tensor]) -> tuple[Any, ...]:
    return io["x"], io["t"], io["text_states"], io["text_mask"], io["text_states_2"], io["guidance"]


def _framepack(io: dict[str, Tensor]) -> tuple[Any, ...]:
    clean = (Clean(io[f"clean_latents{part}"], io[f"clean_latent{part}_indices"]) for part in ("", "_2x", "_4x"))
    text = io["encoder_hidden_states"], io["encoder_attention_mask"], io["pooled_projections"], io["guidance"]
    return io["hidden_states"], io["timestep"], *text, io["image_embeddings"], io["latent_indices"], *clean


JOINT = {
    "hunyuan_video": Case("hv", "hv_t2v", lambda header: HunyuanTransformer(hunyuan.geometry_of(header)), _hunyuan),
    "framepack": Case("fp", "framepack", lambda header: FramePackTransformer(framepack.geometry_of(header)), _framepack),
}
WAN = WanGeometry(dim=32, ffn_dim=64, num_heads=2, num_layers=2, text_dim=32, text_len=24, freq_dim=64)
EVERY = {"wan": Case("wan", "wan21_t2v", lambda _: WanTransformer(WAN), _wan), **JOINT}


def loaded(case: Case, golden: Path, fp8: bool = False, w8a8: str = "") -> Any:
    path = golden / f"{case.file}.dit.safetensors"
    with torch.device("meta"):
        model = case.build(read_header(path))
    if fp8:
        hold_in_fp8(model, fp8_layers(model, cards()[case.card]), "block")
    if w8a8:
        hold_in_8_bits(model, fp8_layers(model, cards()[case.card]), w8a8)
    load_into(model, open_weights(path))
    return model.eval()


def with_lora(model: Any, case: Case, golden: Path) -> LoRANetwork:
    """The recorded LoRA on it."""
    network = LoRANetwork.create(model, cards()[case.card], rank=4, alpha=2.0)
    network.load_weights(load(golden / f"{case.file}.lora.safetensors"))
    return network


def inputs(case: Case, golden: Path) -> tuple[Any, ...]:
    return case.inputs(load(golden / f"{case.file}.io.safetensors"))
