"""Our HunyuanVideo transformer against outputs and gradients recorded from musubi-tuner (golden/dit), and against diffusers' class."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from musubi_backend.architectures.card import Card
from musubi_backend.architectures.framepack.card import CARD as FRAMEPACK
from musubi_backend.architectures.framepack.geometry import FramePackGeometry
from musubi_backend.architectures.framepack.model import FramePackTransformer
from musubi_backend.architectures.hunyuan_video.card import CARD
from musubi_backend.architectures.hunyuan_video.geometry import HunyuanGeometry, geometry_of, original_name
from musubi_backend.architectures.hunyuan_video.model import HunyuanTransformer
from musubi_backend.lora.network import LoRANetwork
from musubi_backend.weights.safetensors_file import load, read_header
from torch import Tensor

# Both sides are float32 and differ in the order of sums.
FP32 = 2e-4  # the last bit of exp, which CPUs round differently, is 4e-4 of an angle in the sinusoids of a guidance of 6000
BF16 = 2e-2  # 8 bits of mantissa, rounded at different places


def difference(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).norm() / theirs.norm())


@pytest.fixture
def golden(shared: Path) -> Path:
    return shared / "golden" / "dit"


@pytest.fixture
def io(golden: Path) -> dict[str, Tensor]:
    return load(golden / "hv_t2v.io.safetensors")


@pytest.fixture
def model(golden: Path) -> HunyuanTransformer:
    model = HunyuanTransformer(geometry_of(read_header(golden / "hv_t2v.dit.safetensors")))
    model.load_state_dict(load(golden / "hv_t2v.dit.safetensors"))
    return model.requires_grad_(False).eval()


def run(model: HunyuanTransformer, io: dict[str, Tensor]) -> Tensor:
    out: Tensor = model(io["x"], io["t"], io["text_states"], io["text_mask"], io["text_states_2"], io["guidance"])
    return out


@pytest.mark.parametrize("split", [False, True])
def test_output_equals_the_recorded_one(model: HunyuanTransformer, io: dict[str, Tensor], split: bool) -> None:
    model.set_attention("torch", split)
    out = run(model, io)
    assert out.dtype == torch.float32
    assert difference(out, io["out.fp32.split_attn" if split else "out.fp32"]) < FP32


@pytest.mark.parametrize("checkpointing", [False, True])
def test_lora_output_loss_and_gradients_equal_the_recorded_ones(
    model: HunyuanTransformer, io: dict[str, Tensor], golden: Path, checkpointing: bool
) -> None:
    model.gradient_checkpointing = checkpointing
    network = LoRANetwork.create(model, CARD, rank=4, alpha=2.0)
    network.load_weights(load(golden / "hv_t2v.lora.safetensors"))

    out = run(model, io)
    loss = torch.nn.functional.mse_loss(out, io["target"])
    loss.backward()

    assert difference(out.detach(), io["out.lora"]) < FP32
    assert loss.item() == pytest.approx(io["loss.lora"].item(), rel=1e-5)
    gradients = load(golden / "hv_t2v.lora_grads.safetensors")
    assert {f"grad.{name}" for name, _ in network.named_parameters()} == set(gradients)
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None
        assert difference(parameter.grad, gradients[f"grad.{name}"]) < FP32, name


def test_bf16_output_is_as_close_to_float32_as_the_recorded_bf16_output(model: HunyuanTransformer, io: dict[str, Tensor]) -> None:
    model.to(torch.bfloat16)
    out = run(model, io)
    theirs, truth = io["out.bf16_weights.autocast_bf16"], io["out.fp32"]
    assert difference(out, theirs) < BF16
    assert difference(out, truth) < 1.25 * difference(theirs, truth)


def test_lora_files_have_the_recorded_keys_shapes_and_dtypes(model: HunyuanTransformer, golden: Path) -> None:
    ours = LoRANetwork.create(model, CARD, rank=4, alpha=2.0).state_dict()
    theirs = load(golden / "hv_t2v.lora.safetensors")
    assert {name: (t.shape, t.dtype) for name, t in ours.items()} == {name: (t.shape, t.dtype) for name, t in theirs.items()}
    order = [name.removesuffix(".alpha").removeprefix("lora_unet_double_blocks_0_") for name in ours if name.endswith("alpha")]
    assert order[:5] == ["img_attn_qkv", "img_attn_proj", "img_mlp_fc1", "img_mlp_fc2", "txt_attn_qkv"]


def test_the_token_refiner_and_modulations_get_a_lora_only_when_asked(model: HunyuanTransformer) -> None:
    names = LoRANetwork.create(model, CARD, network_args=["include_patterns=['.*_mod.*']"]).targets.values()
    assert "double_blocks.0.img_mod.linear" in names
    assert not any(name.startswith("txt_in") for name in names)


def test_sizes_are_read_from_shapes(golden: Path) -> None:
    geometry = geometry_of(read_header(golden / "hv_t2v.dit.safetensors"))
    assert geometry == HunyuanGeometry(
        dim=32, num_heads=2, mlp_dim=128, num_double_layers=1, num_single_layers=2, text_dim=32, pooled_dim=24, rope_widths=(4, 6, 6)
    )
    assert HunyuanGeometry.from_json(geometry.to_json()) == geometry


def test_comfyuis_names_are_known(model: HunyuanTransformer, comfy_name: Callable[[str], str]) -> None:
    names = list(model.state_dict())
    renamed = [comfy_name(name) for name in names]
    assert sum(a != b for a, b in zip(names, renamed, strict=True)) > len(names) / 2
    assert [original_name(name) for name in renamed] == names
    assert [original_name(name) for name in names] == names


@pytest.mark.parametrize(
    ("model", "geometry", "card", "tensors", "parameters", "modules"),
    [
        (HunyuanTransformer, HunyuanGeometry, CARD, 856, 12_821_012_544, 240),
        (FramePackTransformer, FramePackGeometry, FRAMEPACK, 1274, 12_874_314_816, 440),
    ],
)
def test_models_of_the_published_size_have_what_musubi_tuners_have(
    model: Any, geometry: Any, card: Card, tensors: int, parameters: int, modules: int
) -> None:
    """Counted in musubi-tuner's classes; names and shapes of all tensors were the same too."""
    with torch.device("meta"):
        published = model(geometry(dim=3072, num_heads=24, mlp_dim=12288, num_double_layers=20, num_single_layers=40))
        assert len(LoRANetwork.create(published, card, rank=32).targets) == modules
    assert len(published.state_dict()) == tensors
    assert sum(parameter.numel() for parameter in published.parameters()) == parameters
