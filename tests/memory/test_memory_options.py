"""Transformers loaded with the options that save memory: which layers, from which files, and what generating makes of them."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from musubi_backend.architectures.wan.card import CARD
from musubi_backend.architectures.wan.load import generated_dtype, load_transformer
from musubi_backend.architectures.wan.model import WanGeometry, WanTransformer
from musubi_backend.architectures.wan.settings import WanSettings
from musubi_backend.device import computed_in, let_memory_grow
from musubi_backend.errors import UserError
from musubi_backend.memory.fp8 import Fp8Linear, quantise
from musubi_backend.memory.plan import fp8_layers
from musubi_backend.weights.safetensors_file import load, save_atomic
from musubi_backend.weights.scales import EIGHT_BIT_DTYPES
from torch import Tensor

GEOMETRY = WanGeometry(dim=64, ffn_dim=128, num_heads=2, num_layers=2, text_dim=32, text_len=16, freq_dim=32)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def dit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bf16 transformer with weights of sensible size."""
    model = WanTransformer(GEOMETRY)
    generator = torch.Generator().manual_seed(5)
    for name, parameter in sorted(model.named_parameters()):
        torch.nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.1, generator=generator)
        if "norm" in name:
            parameter.data += 1
    path = tmp_path_factory.mktemp("model") / "dit.safetensors"
    save_atomic(model.bfloat16().state_dict(), path, {"musubi_geometry": GEOMETRY.to_json()})
    return path


def arguments(dit: Path, **given: object) -> WanSettings:
    return WanSettings.read({"dit": str(dit), "task": "t2v-1.3B", **given})


def prediction(model: WanTransformer) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(1, 16, 2, 4, 6, generator=generator)
    with torch.no_grad():
        return model(latents, torch.tensor([500.0]), [torch.randn(7, 32, generator=generator)])


def difference(one: Tensor, other: Tensor) -> float:
    return float((one - other).norm() / other.norm())


def test_the_layers_are_the_recorded_ones(shared: Path) -> None:
    listed = json.loads((shared / "golden" / "fp8" / "layers.json").read_text())["wan_i2v"]
    with torch.device("meta"):
        model = WanTransformer(WanGeometry(dim=64, ffn_dim=128, num_heads=2, num_layers=2, image_dim=48))
    assert sorted(f"{name}.weight" for name in fp8_layers(model, CARD)) == listed


@pytest.mark.parametrize(
    ("flags", "limit"), [({"fp8": True}, 0.06), ({"fp8_scaled": True}, 0.06), ({"fp8": True, "fp8_scaled": True, "fp8_fast": True}, 0.12)]
)
def test_outputs_stay_close_and_blocks_take_half_the_memory(dit: Path, flags: dict[str, bool], limit: float) -> None:
    exact = load_transformer(arguments(dit), CPU, torch.float32)
    small = load_transformer(arguments(dit, **flags), CPU, torch.float32)
    linears = [module for module in small.blocks.modules() if isinstance(module, torch.nn.Linear)]
    assert linears
    assert all(isinstance(linear, Fp8Linear) and linear.weight.dtype in EIGHT_BIT_DTYPES for linear in linears)
    assert small.head.head.weight.dtype == small.time_embedding[0].weight.dtype == torch.float32
    assert 1e-4 < difference(prediction(small), prediction(exact)) < limit


def test_training_uses_its_own_flag_names(dit: Path) -> None:
    plain = load_transformer(arguments(dit, fp8_base=True, fp8_scaled=False), CPU, torch.bfloat16)
    scaled = load_transformer(arguments(dit, fp8_base=True, fp8_scaled=True), CPU, torch.bfloat16)
    assert plain.blocks[0].ffn[0].scale_weight is None
    assert scaled.blocks[0].ffn[0].scale_weight.shape == (128, 1, 1)
    assert scaled.blocks[0].ffn[0].scale_weight.dtype == torch.bfloat16


def test_a_lora_is_merged_before_the_weights_become_small(dit: Path, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(6)
    lora = {
        "lora_unet_blocks_1_ffn_0.lora_down.weight": torch.randn(4, 64, generator=generator),
        "lora_unet_blocks_1_ffn_0.lora_up.weight": torch.randn(128, 4, generator=generator) * 0.1,
        "lora_unet_blocks_1_ffn_0.alpha": torch.tensor(4.0),
    }
    save_atomic(lora, tmp_path / "lora.safetensors")
    with_lora = {"lora_weight": [str(tmp_path / "lora.safetensors")]}
    exact = load_transformer(arguments(dit, **with_lora), CPU, torch.float32)
    small = load_transformer(arguments(dit, fp8_scaled=True, **with_lora), CPU, torch.float32)
    merged, stored = exact.blocks[1].ffn[0].weight, small.blocks[1].ffn[0]
    assert torch.equal(stored.weight.view(torch.uint8), quantise(merged)[0].view(torch.uint8))


def test_an_fp8_file_is_kept_or_widened(dit: Path, tmp_path: Path) -> None:
    """A ComfyUI-like file: scaled blocks, one layer of them left in bf16, scaled text embedding."""
    state = load(dit)
    scaled: dict[str, Tensor] = {"scaled_fp8": torch.ones(2).to(torch.float8_e4m3fn)}
    for name, tensor in state.items():
        if tensor.ndim == 2 and name.startswith(("blocks.", "text_embedding.")) and "cross_attn.o" not in name:
            stored, scale = quantise(tensor, "tensor")
            scaled |= {name: stored, name.replace(".weight", ".scale_weight"): scale.float().reshape(())}
        else:
            scaled[name] = tensor
    small_file = tmp_path / "dit_fp8_scaled.safetensors"
    save_atomic(
        {f"model.diffusion_model.{name}": tensor for name, tensor in scaled.items()}, small_file, {"musubi_geometry": GEOMETRY.to_json()}
    )

    assert generated_dtype(arguments(small_file), CPU) == computed_in(torch.bfloat16, CPU)
    exact = load_transformer(arguments(dit), CPU, torch.float32)
    wide = load_transformer(arguments(small_file), CPU, torch.float32)
    kept = load_transformer(arguments(small_file, fp8=True), CPU, torch.float32)
    also = load_transformer(arguments(small_file, fp8_base=True, fp8_scaled=True), CPU, torch.float32)
    assert not any(isinstance(module, Fp8Linear) for module in wide.modules())
    assert isinstance(kept.blocks[0].ffn[0], Fp8Linear)
    assert not isinstance(kept.blocks[0].cross_attn.o, Fp8Linear)  # the maker of the file kept it exact
    assert kept.text_embedding[0].weight.dtype == torch.float32
    torch.testing.assert_close(prediction(kept), prediction(wide), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(prediction(also), prediction(wide), rtol=1e-4, atol=1e-5)
    assert 1e-4 < difference(prediction(wide), prediction(exact)) < 0.06


def test_a_plain_fp8_file_cannot_be_scaled(dit: Path, tmp_path: Path) -> None:
    state = {name: tensor.to(torch.float8_e4m3fn) for name, tensor in load(dit).items()}
    save_atomic(state, tmp_path / "fp8.safetensors", {"musubi_geometry": GEOMETRY.to_json()})
    with pytest.raises(UserError, match="already holds fp8 weights without scales"):
        load_transformer(arguments(tmp_path / "fp8.safetensors", fp8_scaled=True), CPU, torch.bfloat16)
    model = load_transformer(arguments(tmp_path / "fp8.safetensors", fp8=True), CPU, torch.bfloat16)
    assert model.blocks[0].ffn[0].weight.dtype == torch.float8_e4m3fn
    assert model.blocks[0].modulation.dtype == torch.bfloat16


def test_blocks_wait_in_main_memory_from_the_options(dit: Path) -> None:
    plain = load_transformer(arguments(dit, fp8=True), CPU, torch.float32)
    swapped = load_transformer(arguments(dit, fp8=True, blocks_to_swap=1, block_swap_ring_size=1), CPU, torch.float32)
    assert all(block.stream is swapped.blocks[0].stream for block in swapped.blocks)
    assert torch.equal(prediction(swapped), prediction(plain))
    with pytest.raises(UserError, match="--blocks_to_swap 2: at most 1 of the blocks of this model"):
        load_transformer(arguments(dit, blocks_to_swap=2), CPU, torch.float32)


def test_a_model_to_be_merged_and_saved_is_kept_whole(dit: Path) -> None:
    model = load_transformer(arguments(dit, fp8=True, blocks_to_swap=1, save_merged_model="out.safetensors"), CPU, torch.bfloat16)
    assert not any(isinstance(module, Fp8Linear) for module in model.modules())
    assert not hasattr(model.blocks[0], "stream")


@pytest.mark.parametrize("set_by_the_user", ["PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", None])
def test_memory_of_the_gpu_grows_unless_the_user_has_chosen(set_by_the_user: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setattr(os, "environ", {set_by_the_user: "kept"} if set_by_the_user else {})
    let_memory_grow()
    assert os.environ.get("PYTORCH_ALLOC_CONF") == {"PYTORCH_ALLOC_CONF": "kept", None: "expandable_segments:True"}.get(set_by_the_user)
