"""Our Wan transformer against outputs and gradients recorded from musubi-tuner (golden/dit)."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from musubi_backend.architectures.wan.card import CARD
from musubi_backend.architectures.wan.model import WanGeometry, WanTransformer
from musubi_backend.lora.network import LoRANetwork

# Both sides are float32; what is left is the order of sums and the tables, ours cast from float64, theirs applied in it.
FP32 = 1e-5
# bf16 keeps 8 bits: each side is 6e-3 away from float32 (see the test), and they round at different places.
BF16 = 1e-2
RECORDED = WanGeometry(dim=32, ffn_dim=64, num_heads=2, num_layers=2, text_dim=32, text_len=24, freq_dim=64)
CASES = {
    "wan21_t2v": RECORDED,
    "wan21_i2v": replace(RECORDED, in_dim=36, image_dim=48),
    "wan22_t2v": RECORDED,
    "wan22_i2v": replace(RECORDED, in_dim=36),
    "wan21_i2v_one_frame": replace(RECORDED, in_dim=36, image_dim=48),
    "wan21_fun_control_t2v": replace(RECORDED, in_dim=48, image_dim=48),
}
# cases that share the weights and the LoRA of another one, and the positions in time of their frames
SHARED = {"wan21_i2v_one_frame": "wan21_i2v"}
FRAME_INDICES = {"wan21_i2v_one_frame": (0, 9)}


def weights_of(case: str) -> str:
    return SHARED.get(case, case)


def difference(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Relative; of what is zero in the recording (layers without anything to attend to), how large ours is."""
    return float((ours - theirs).norm() / (theirs.norm() or 1.0))


def inputs(case: str, io: dict[str, torch.Tensor]) -> dict[str, object]:
    text = [io[name] for name in sorted(io) if name.startswith("context.")]
    images = {"extra_channels": io.get("y"), "image": io.get("clip_fea"), "frame_indices": FRAME_INDICES.get(case)}
    return {"latents": io["x"], "timesteps": io["t"], "text": text, **images}


@pytest.mark.parametrize("case", CASES)
def test_output_equals_the_recorded_one(recorded, case):
    model, io = WanTransformer(CASES[case]).eval(), recorded(f"{case}.io")
    model.load_state_dict(recorded(f"{weights_of(case)}.dit"))
    with torch.no_grad():
        out = model(**inputs(case, io))
    assert out.dtype == torch.float32
    assert difference(out, io["out.fp32_weights.fp32_attn"]) < FP32
    with torch.no_grad():
        assert difference(model(**inputs(case, io), skip_blocks={1}), io["out.fp32_attn.skip_block_1"]) < FP32


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_lora_output_loss_and_gradients_equal_the_recorded_ones(recorded, case, checkpointing):
    model, io = WanTransformer(CASES[case]), recorded(f"{case}.io")
    model.load_state_dict(recorded(f"{weights_of(case)}.dit"))
    model.requires_grad_(False)
    model.gradient_checkpointing = checkpointing
    network = LoRANetwork.create(model, CARD, rank=4, alpha=2.0)
    network.load_weights(recorded(f"{weights_of(case)}.lora"))

    out = model(**inputs(case, io))
    loss = torch.nn.functional.mse_loss(out, io["target"])
    loss.backward()

    assert difference(out.detach(), io["out.lora.fp32_attn"]) < FP32
    assert loss.item() == pytest.approx(io["loss.lora.fp32_attn"].item(), rel=1e-6)
    gradients = recorded(f"{case}.lora_grads")
    assert {f"grad.{name}" for name, _ in network.named_parameters()} == set(gradients)
    for name, parameter in network.named_parameters():
        assert difference(parameter.grad, gradients[f"grad.{name}"]) < FP32, name


@pytest.mark.parametrize("case", CASES)
def test_bf16_output_is_as_close_to_float32_as_the_recorded_bf16_output(recorded, case):
    model, io = WanTransformer(CASES[case]), recorded(f"{case}.io")
    model.load_state_dict(recorded(f"{weights_of(case)}.dit"))
    model.to(torch.bfloat16)
    with torch.no_grad():
        out = model(**inputs(case, io))
    theirs, truth = io["out.bf16_weights.autocast_bf16"], io["out.fp32_weights.fp32_attn"]
    assert difference(out, theirs) < BF16
    assert difference(out, truth) < 1.25 * difference(theirs, truth)


def test_lora_files_have_the_recorded_keys_shapes_and_dtypes(recorded):
    for case, geometry in CASES.items():
        network = LoRANetwork.create(WanTransformer(geometry), CARD, rank=4, alpha=2.0)
        theirs = recorded(f"{weights_of(case)}.lora")
        ours = network.state_dict()
        assert {k: (v.shape, v.dtype) for k, v in ours.items()} == {k: (v.shape, v.dtype) for k, v in theirs.items()}
        order = [key.split(".")[0].removeprefix("lora_unet_blocks_0_") for key in ours if key.endswith("alpha") and "_0_" in key]
        assert order[:5] == ["self_attn_q", "self_attn_k", "self_attn_v", "self_attn_o", "cross_attn_q"]
