"""HunyuanVideo and FramePack with what saves memory: the recorded outputs and gradients when blocks visit the device, the recorded
layers in fp8."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from musubi_backend.architectures import cards
from musubi_backend.architectures.framepack import geometry as framepack
from musubi_backend.architectures.framepack.model import Clean, FramePackTransformer
from musubi_backend.architectures.hunyuan_video import geometry as hunyuan
from musubi_backend.architectures.hunyuan_video.model import HunyuanTransformer
from musubi_backend.lora.network import LoRANetwork
from musubi_backend.memory.compiling import Compilation
from musubi_backend.memory.fp8 import Fp8Linear, hold_in_fp8
from musubi_backend.memory.plan import fp8_layers
from musubi_backend.memory.streaming import BlockStream
from musubi_backend.weights.loader import load_into, open_weights
from musubi_backend.weights.safetensors_file import load, read_header
from torch import Tensor, nn

CPU = torch.device("cpu")
FP32 = 1e-5


class Case(NamedTuple):
    card: str
    file: str
    build: Callable[[Any], nn.Module]
    inputs: Callable[[dict[str, Tensor]], tuple[Any, ...]]


def _hunyuan(io: dict[str, Tensor]) -> tuple[Any, ...]:
    return io["x"], io["t"], io["text_states"], io["text_mask"], io["text_states_2"], io["guidance"]


def _framepack(io: dict[str, Tensor]) -> tuple[Any, ...]:
    clean = (Clean(io[f"clean_latents{part}"], io[f"clean_latent{part}_indices"]) for part in ("", "_2x", "_4x"))
    text = io["encoder_hidden_states"], io["encoder_attention_mask"], io["pooled_projections"], io["guidance"]
    return io["hidden_states"], io["timestep"], *text, io["image_embeddings"], io["latent_indices"], *clean


CASES = {
    "hunyuan_video": Case("hv", "hv_t2v", lambda header: HunyuanTransformer(hunyuan.geometry_of(header)), _hunyuan),
    "framepack": Case("fp", "framepack", lambda header: FramePackTransformer(framepack.geometry_of(header)), _framepack),
}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


@pytest.fixture
def golden(shared: Path) -> Path:
    return shared / "golden" / "dit"


def loaded(case: Case, golden: Path, fp8: bool = False) -> Any:
    path = golden / f"{case.file}.dit.safetensors"
    with torch.device("meta"):
        model = case.build(read_header(path))
    if fp8:
        hold_in_fp8(model, fp8_layers(model, cards()[case.card]), "block")
    load_into(model, open_weights(path))
    return model.eval()


def difference(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).norm() / theirs.norm())


@pytest.mark.parametrize("checkpointing", [False, True])
def test_visiting_blocks_give_the_recorded_output_and_gradients(case: Case, golden: Path, checkpointing: bool) -> None:
    model, io = loaded(case, golden), load(golden / f"{case.file}.io.safetensors")
    for blocks in model.block_lists():
        BlockStream(list(blocks), CPU, ring=1)
    model.gradient_checkpointing = checkpointing
    network = LoRANetwork.create(model, cards()[case.card], rank=4, alpha=2.0)
    network.load_weights(load(golden / f"{case.file}.lora.safetensors"))
    out = model(*case.inputs(io))
    assert difference(out.detach(), io["out.lora"]) < FP32
    nn.functional.mse_loss(out, io["target"]).backward()
    gradients = load(golden / f"{case.file}.lora_grads.safetensors")
    for name, parameter in network.named_parameters():
        assert difference(parameter.grad, gradients[f"grad.{name}"]) < FP32, name


def test_fp8_blocks_give_nearly_the_recorded_output(case: Case, golden: Path) -> None:
    model, io = loaded(case, golden, fp8=True), load(golden / f"{case.file}.io.safetensors")
    assert any(isinstance(module, Fp8Linear) for module in model.modules())
    with torch.no_grad():
        assert 1e-4 < difference(model(*case.inputs(io)), io["out.fp32"]) < 0.06


def test_framepack_s_fp8_layers_are_the_recorded_ones(shared: Path, golden: Path) -> None:
    listed = json.loads((shared / "golden" / "fp8" / "layers.json").read_text())["framepack"]
    assert sorted(f"{name}.weight" for name in fp8_layers(loaded(CASES["framepack"], golden), cards()["fp"])) == listed


@pytest.mark.slow
def test_compiled_blocks_give_the_recorded_output(case: Case, golden: Path) -> None:
    model, io = loaded(case, golden), load(golden / f"{case.file}.io.safetensors")
    torch._dynamo.reset()  # what other tests compiled counts towards its limit
    Compilation("aot_eager", fullgraph=True).compile(block for blocks in model.block_lists() for block in blocks)
    try:
        with torch.no_grad():
            assert difference(model(*case.inputs(io)), io["out.fp32"]) < FP32
    finally:
        torch._dynamo.reset()
