"""`--mixed_precision auto`: what each file and each processor is computed in, what contradicts a file, and what is recorded."""

from __future__ import annotations

from pathlib import Path
from types import MappingProxyType

import pytest
import torch
from musubi_backend.architectures.framepack.adapter import ADAPTER as FRAMEPACK
from musubi_backend.architectures.hunyuan_video.adapter import ADAPTER as HUNYUAN
from musubi_backend.architectures.precision import check_precision, followed, stored_precision
from musubi_backend.architectures.protocol import Architecture
from musubi_backend.architectures.wan.adapter import ADAPTER as WAN
from musubi_backend.device import cpu_computes_in
from musubi_backend.errors import UserError
from musubi_backend.weights.safetensors_file import load, save_atomic

FP8 = torch.float8_e4m3fn
FILES = {"wan": "wan21_t2v", "hv": "hv_t2v", "fp": "framepack"}
WITH_BF16 = {"avx512_bf16": True}  # Cooper Lake, Zen 4
WITH_BOTH = {"avx512_bf16": True, "avx512_fp16": True}  # Sapphire Rapids
ARM = {"bf16": True, "fp16_arith": True}
PLAIN = {"avx2": True, "avx512_bf16": False}


@pytest.fixture
def transformer(shared: Path, tmp_path: Path):
    """A tiny transformer of an architecture in a dtype, chosen in its settings; ComfyUI's files have a prefix."""

    def write(architecture: Architecture, dtype: torch.dtype, **flags: object) -> Architecture:
        state = load(shared / "golden" / "dit" / f"{FILES[architecture.card.id]}.dit.safetensors")
        path = tmp_path / f"{architecture.card.id}.safetensors"
        save_atomic({f"model.diffusion_model.{name}": tensor.to(dtype) for name, tensor in state.items()}, path)
        return architecture.configured({"dit": str(path), "task": "t2v-1.3B", **flags})

    return write


def on_cpu_with(monkeypatch: pytest.MonkeyPatch, capabilities: dict[str, bool]) -> None:
    """This test runs on a CPU that says so of itself."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: MappingProxyType(capabilities))


@pytest.mark.parametrize("architecture", [WAN, HUNYUAN, FRAMEPACK])
@pytest.mark.parametrize(
    ("stored", "gpu", "plain", "with_bf16", "with_both"),
    [
        (torch.float16, torch.float16, torch.float32, torch.float32, torch.float16),
        (torch.bfloat16, torch.bfloat16, torch.float32, torch.bfloat16, torch.bfloat16),
        (FP8, torch.bfloat16, torch.float32, torch.bfloat16, torch.bfloat16),
        (torch.float32, torch.bfloat16, torch.float32, torch.float32, torch.float32),
    ],
)
def test_auto_follows_file_and_processor(transformer, monkeypatch, architecture, stored, gpu, plain, with_bf16, with_both) -> None:
    with_file = transformer(architecture, stored)
    for capabilities, expected in ((PLAIN, plain), ({}, plain), (WITH_BF16, with_bf16), (WITH_BOTH, with_both), (ARM, with_both)):
        on_cpu_with(monkeypatch, capabilities)
        assert with_file.training_dtype("auto") == expected
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert with_file.training_dtype("auto") == gpu
    short = {torch.float16: "fp16", torch.bfloat16: "bf16"}[gpu]
    assert followed(stored_precision(with_file.weight_file(), architecture.card)) == short, "what musubi-tuner and accelerate are reported"


@pytest.mark.parametrize(
    ("architecture", "stored", "no"),
    [
        (WAN, torch.float16, torch.float16), (WAN, torch.bfloat16, torch.bfloat16), (WAN, torch.float32, torch.float32),
        (WAN, FP8, torch.bfloat16), (HUNYUAN, torch.float32, torch.bfloat16), (FRAMEPACK, torch.float16, torch.bfloat16),
    ],
)  # fmt: skip
def test_no_computes_in_what_its_explanation_says(transformer, architecture: Architecture, stored: torch.dtype, no: torch.dtype) -> None:
    assert transformer(architecture, stored).training_dtype("no") == no


def test_hunyuan_videos_own_flag_wins_over_auto(transformer) -> None:
    assert transformer(HUNYUAN, torch.bfloat16, dit_dtype="float16").training_dtype("auto") == torch.float16


def test_a_generator_does_not_imitate_bf16_either(transformer, monkeypatch: pytest.MonkeyPatch) -> None:
    for architecture in (WAN, HUNYUAN, FRAMEPACK):
        with_file = transformer(architecture, torch.bfloat16)
        for capabilities, expected in ((PLAIN, torch.float32), (WITH_BF16, torch.bfloat16)):
            on_cpu_with(monkeypatch, capabilities)
            assert with_file.generating_dtype(torch.device("cpu")) == expected
        assert with_file.generating_dtype(torch.device("cuda")) == torch.bfloat16


@pytest.mark.parametrize("stored", ["fp16", "bf16", "fp32", "fp8", None])
@pytest.mark.parametrize("precision", ["no", "auto", "fp16", "bf16", None])
def test_only_a_wan_file_in_16_bits_contradicts(stored: str | None, precision: str | None) -> None:
    wrong = stored in ("fp16", "bf16") and precision in ("fp16", "bf16") and stored != precision
    check_precision(stored, precision, HUNYUAN.card, "x")
    check_precision(stored, precision, FRAMEPACK.card, "x")
    if wrong:
        with pytest.raises(UserError, match=f"in {stored}, mixed precision must be auto, {stored} or no, not {precision} .x"):
            check_precision(stored, precision, WAN.card, "x")
    else:
        check_precision(stored, precision, WAN.card, "x")


def test_this_cpu_is_asked_by_pytorchs_documented_function() -> None:
    said = torch.cpu.get_capabilities()
    assert said["architecture"]
    assert cpu_computes_in(torch.bfloat16) == any(said.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16"))
