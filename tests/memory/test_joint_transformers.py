"""HunyuanVideo and FramePack with what saves memory: the recorded outputs and gradients when blocks visit the device, the recorded
layers in fp8."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from musubi_backend.architectures import cards
from musubi_backend.memory.compiling import Compilation
from musubi_backend.memory.fp8 import Fp8Linear
from musubi_backend.memory.plan import fp8_layers
from musubi_backend.memory.streaming import BlockStream
from musubi_backend.weights.safetensors_file import load
from recorded_models import JOINT, Case, loaded, with_lora
from torch import Tensor, nn

CPU = torch.device("cpu")
FP32 = 2e-4  # the last bit of exp, which CPUs round differently, is 4e-4 of an angle in the sinusoids of a guidance of 6000


@pytest.fixture(params=JOINT)
def case(request: pytest.FixtureRequest) -> Case:
    return JOINT[request.param]


@pytest.fixture
def golden(shared: Path) -> Path:
    return shared / "golden" / "dit"


def difference(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).norm() / theirs.norm())


@pytest.mark.parametrize("checkpointing", [False, True])
def test_visiting_blocks_give_the_recorded_output_and_gradients(case: Case, golden: Path, checkpointing: bool) -> None:
    model, io = loaded(case, golden), load(golden / f"{case.file}.io.safetensors")
    for blocks in model.block_lists():
        BlockStream(list(blocks), CPU, ring=1)
    model.gradient_checkpointing = checkpointing
    network = with_lora(model, case, golden)
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
    assert sorted(f"{name}.weight" for name in fp8_layers(loaded(JOINT["framepack"], golden), cards()["fp"])) == listed


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
