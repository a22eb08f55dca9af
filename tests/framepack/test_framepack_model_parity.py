"""Our FramePack transformer against outputs and gradients recorded from musubi-tuner (golden/dit)."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from musubi_backend.architectures.framepack.card import CARD
from musubi_backend.architectures.framepack.geometry import FramePackGeometry, geometry_of
from musubi_backend.architectures.framepack.load import generated_dtype, load_transformer
from musubi_backend.architectures.framepack.model import Clean, FramePackTransformer
from musubi_backend.architectures.framepack.settings import FramePackSettings
from musubi_backend.lora.network import LoRANetwork
from musubi_backend.options.registry import options_for
from musubi_backend.weights.safetensors_file import load, read_header
from torch import Tensor

# Both sides are float32 and differ in the order of sums.
FP32 = 2e-4  # the last bit of exp, which CPUs round differently, is 4e-4 of an angle in the sinusoids of a guidance of 6000
BF16 = 2e-2  # 8 bits of mantissa, rounded at different places
CASES = ("framepack", "framepack_no2x4x_oneframe")


def difference(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).norm() / theirs.norm())


def inputs(io: dict[str, Tensor]) -> dict[str, object]:
    def clean(part: str) -> Clean | None:
        return Clean(io[f"clean_latents{part}"], io[f"clean_latent{part}_indices"]) if f"clean_latents{part}" in io else None

    return {
        "latents": io["hidden_states"], "timesteps": io["timestep"], "text": io["encoder_hidden_states"],
        "text_mask": io["encoder_attention_mask"], "pooled": io["pooled_projections"], "guidance": io["guidance"],
        "image": io["image_embeddings"], "latent_indices": io["latent_indices"],
        "clean": clean(""), "clean_2x": clean("_2x"), "clean_4x": clean("_4x"),
    }  # fmt: skip


@pytest.fixture
def golden(shared: Path) -> Path:
    return shared / "golden" / "dit"


@pytest.fixture
def model(golden: Path) -> FramePackTransformer:
    model = FramePackTransformer(geometry_of(read_header(golden / "framepack.dit.safetensors")))
    model.load_state_dict(load(golden / "framepack.dit.safetensors"))
    return model.requires_grad_(False).eval()


@pytest.mark.parametrize("case", CASES)
def test_output_equals_the_recorded_one(model: FramePackTransformer, golden: Path, case: str) -> None:
    io = load(golden / f"{case}.io.safetensors")
    out = model(**inputs(io))
    assert out.dtype == torch.float32
    assert difference(out, io["out.fp32"]) < FP32


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_lora_output_loss_and_gradients_equal_the_recorded_ones(
    model: FramePackTransformer, golden: Path, case: str, checkpointing: bool
) -> None:
    io = load(golden / f"{case}.io.safetensors")
    model.gradient_checkpointing = checkpointing
    network = LoRANetwork.create(model, CARD, rank=4, alpha=2.0)
    network.load_weights(load(golden / "framepack.lora.safetensors"))

    out = model(**inputs(io))
    loss = torch.nn.functional.mse_loss(out, io["target"])
    loss.backward()

    assert difference(out.detach(), io["out.lora"]) < FP32
    assert loss.item() == pytest.approx(io["loss.lora"].item(), rel=1e-5)
    gradients = load(golden / f"{case}.lora_grads.safetensors")
    assert {f"grad.{name}" for name, _ in network.named_parameters()} == set(gradients)
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None
        assert difference(parameter.grad, gradients[f"grad.{name}"]) < FP32, name


@pytest.mark.parametrize("case", CASES)
def test_bf16_output_is_as_close_to_float32_as_the_recorded_bf16_output(model: FramePackTransformer, golden: Path, case: str) -> None:
    io = load(golden / f"{case}.io.safetensors")
    model.to(torch.bfloat16)
    out = model(**inputs(io))
    theirs, truth = io["out.bf16_weights.autocast_bf16"], io["out.fp32"]
    assert difference(out, theirs) < BF16
    assert difference(out, truth) < 1.25 * difference(theirs, truth)


def test_lora_files_have_the_recorded_keys_shapes_and_dtypes(model: FramePackTransformer, golden: Path) -> None:
    ours = LoRANetwork.create(model, CARD, rank=4, alpha=2.0).state_dict()
    theirs = load(golden / "framepack.lora.safetensors")
    assert {name: (t.shape, t.dtype) for name, t in ours.items()} == {name: (t.shape, t.dtype) for name, t in theirs.items()}


def test_sizes_are_read_from_shapes(golden: Path) -> None:
    geometry = geometry_of(read_header(golden / "framepack.dit.safetensors"))
    assert geometry == FramePackGeometry(
        dim=32, num_heads=2, mlp_dim=128, num_double_layers=1, num_single_layers=2, text_dim=32, pooled_dim=24, image_dim=40,
        num_refiner_layers=1, rope_widths=(4, 6, 6),
    )  # fmt: skip
    assert FramePackGeometry.from_json(geometry.to_json()) == geometry


@pytest.mark.parametrize("split", [False, True])
def test_a_batch_equals_its_samples_one_by_one(model: FramePackTransformer, golden: Path, split: bool) -> None:
    """Two samples with texts, positions and times of their own."""
    io = load(golden / "framepack.io.safetensors")
    first = inputs(io)
    other = {**first, "text": first["text"] + 1, "timesteps": first["timesteps"] / 3, "latent_indices": first["latent_indices"] + 5}  # type: ignore[operator]
    other["text_mask"] = torch.arange(io["encoder_attention_mask"].shape[1])[None] < 4

    def joined(name: str) -> object:
        a, b = first[name], other[name]
        if isinstance(a, Clean) and isinstance(b, Clean):
            return Clean(torch.cat([a.latents, b.latents]), torch.cat([a.indices, b.indices]))
        assert isinstance(a, Tensor) and isinstance(b, Tensor)
        return torch.cat([a, b])

    model.set_attention("torch", split)
    together = model(**{name: joined(name) for name in first})
    assert difference(together[:1], model(**first)) < 1e-5
    assert difference(together[1:], model(**other)) < 1e-5


def test_scaled_positions_act_from_their_timestep_up(model: FramePackTransformer, golden: Path) -> None:
    io = load(golden / "framepack_no2x4x_oneframe.io.safetensors")
    sample = inputs(io)
    plain = model(**sample)
    model.rope_scaling = (io["timestep"].item() + 1, 0.5)
    assert torch.equal(model(**sample), plain)
    model.rope_scaling = (io["timestep"].item(), 0.5)
    assert not torch.allclose(model(**sample), plain, atol=1e-3)
    model.rope_scaling = (io["timestep"].item(), 1.0)
    assert torch.equal(model(**sample), plain)


def test_the_weights_may_be_named_by_their_folder(golden: Path, tmp_path: Path) -> None:
    (tmp_path / "b.safetensors").write_bytes(b"not looked at")
    (tmp_path / "a.safetensors").symlink_to(golden / "framepack.dit.safetensors")
    settings = FramePackSettings(dit=str(tmp_path))
    assert generated_dtype(settings, torch.device("cpu")) == torch.float32
    assert load_transformer(settings, torch.device("cpu"), torch.float32).geometry.image_dim == 40
    assert all(options_for(tool)["dit"].path == "any" for tool in ("fpack_train_network", "fpack_generate_video"))
