"""Streaming load: every accepted form of a file gives the same module; everything else is rejected with its reason."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from musubi_backend import durations, events, job
from musubi_backend.architectures.wan.geometry import GEOMETRY_KEY, PREFIXES, WanGeometry
from musubi_backend.architectures.wan.load import load_transformer, trained_dtype
from musubi_backend.architectures.wan.settings import WanSettings
from musubi_backend.errors import UserError
from musubi_backend.weights.loader import load_into, open_weights
from musubi_backend.weights.safetensors_file import load, save_atomic
from torch import nn

CPU = torch.device("cpu")
GEOMETRY = WanGeometry(dim=32, ffn_dim=64, num_heads=2, num_layers=2, text_dim=32, text_len=24, freq_dim=64)


class Toy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 4)
        self.second = nn.Linear(4, 2)
        self.register_buffer("steps", torch.zeros(2, dtype=torch.int64))


def toy() -> Toy:
    with torch.device("meta"):
        return Toy()


def test_how_much_of_a_large_file_has_been_read_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Large(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = (nn.Buffer(torch.zeros(100_000_000, dtype=torch.uint8)) for _ in range(2))

    save_atomic(Large().state_dict(), tmp_path / "large.safetensors")
    monkeypatch.setenv(job.JOB_DIR_VARIABLE, str(tmp_path))
    monkeypatch.setattr(durations, "BETWEEN_PLACES", 0)
    job.phase("loading the encoder")
    load_into(Large(), open_weights(tmp_path / "large.safetensors"))
    heard = events.Reader().feed((tmp_path / events.FILE_NAME).read_bytes())
    told = [event.text for event in heard if isinstance(event, events.Phase)]  # who was once asked to stop tells that for good
    assert told == ["loading the encoder", "loading the encoder: 0.1 of 0.2 GB", "loading the encoder: 0.2 of 0.2 GB"]


@settings(max_examples=25, deadline=None)
@given(
    prefix=st.sampled_from(["", *PREFIXES]),
    parts=st.integers(1, 3),
    stored=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    wanted=st.sampled_from([None, torch.float32, torch.bfloat16]),
    pickled=st.booleans(),
)
def test_every_form_of_a_file_gives_the_same_module(tmp_path_factory, prefix, parts, stored, wanted, pickled):
    folder = tmp_path_factory.mktemp("model")
    state = {name: t.to(stored) if t.is_floating_point() else t + 5 for name, t in Toy().state_dict().items()}
    stored_names = {prefix + name: tensor for name, tensor in state.items()}
    if prefix:
        stored_names["first_stage_model.other"] = torch.ones(1)  # of another model in the same file: left alone
    if pickled:
        path = folder / "model.pth"
        torch.save({"state_dict": stored_names}, path)
    else:
        names = sorted(stored_names)
        for number in range(parts):
            path = folder / ("model.safetensors" if parts == 1 else f"model-{number + 1:05d}-of-{parts:05d}.safetensors")
            save_atomic({name: stored_names[name] for name in names[number::parts]}, path)
    module = toy()
    load_into(module, open_weights(path, PREFIXES), CPU, wanted)
    for name, tensor in module.state_dict().items():
        expected = state[name].to(wanted) if wanted is not None and state[name].is_floating_point() else state[name]
        assert tensor.dtype == expected.dtype
        assert torch.equal(tensor, expected)
    assert not any(parameter.requires_grad for parameter in module.parameters())


def test_what_does_not_fit_is_listed_before_anything_is_loaded(tmp_path):
    state = Toy().state_dict()
    del state["first.bias"]
    state["third.weight"] = torch.ones(1)
    state["second.weight"] = torch.ones(5, 5)
    save_atomic(state, tmp_path / "odd.safetensors")
    module = toy()
    with pytest.raises(UserError) as error:
        load_into(module, open_weights(tmp_path / "odd.safetensors"))
    for part in ("odd.safetensors", "1 missing: first.bias", "1 not part of the model: third.weight", "second.weight [5, 5], needs [2, 4]"):
        assert part in str(error.value)
    assert all(parameter.is_meta for parameter in module.parameters())


def test_a_pickle_with_code_is_rejected(tmp_path):
    torch.save({"weight": pytest.raises}, tmp_path / "code.pth")
    with pytest.raises(UserError, match="cannot be loaded as plain PyTorch weights"):
        open_weights(tmp_path / "code.pth")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the process's peak memory from Linux's /proc")
def test_peak_memory_is_about_the_model_itself(tmp_path):
    """64 tensors of 4 MB: beyond the model's 256 MB there may be one in flight, twice for its cast."""
    save_atomic({f"{n}.weight": torch.ones(1024, 2048, dtype=torch.bfloat16) for n in range(64)}, tmp_path / "big.safetensors")
    code = f"""
import torch
from pathlib import Path
from torch import nn
from musubi_backend.weights.loader import load_into, open_weights
def megabytes(what):
    return next(int(line.split()[1]) / 1024 for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(what))
with torch.device("meta"):
    module = nn.ModuleList(nn.Linear(2048, 1024, bias=False) for _ in range(64))
before = megabytes("VmRSS")
load_into(module, open_weights({str(tmp_path / "big.safetensors")!r}), dtype=torch.float16)
print(megabytes("VmHWM") - before)
"""
    import musubi_backend

    environment = {"PYTHONPATH": str(Path(musubi_backend.__file__).parent.parent), "OMP_NUM_THREADS": "1"}
    grown = float(subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=True, text=True).stdout)
    assert 256 <= grown < 256 + 16


@pytest.fixture
def wan_file(shared, tmp_path):
    """A tiny Wan file that says its sizes, as `dtype`."""

    def write(dtype: torch.dtype = torch.float32, geometry: WanGeometry | None = GEOMETRY) -> WanSettings:
        state = load(shared / "golden" / "dit" / "wan21_t2v.dit.safetensors")
        path = tmp_path / "tiny.safetensors"
        save_atomic({n: t.to(dtype) for n, t in state.items()}, path, {GEOMETRY_KEY: geometry.to_json()} if geometry else None)
        return WanSettings(dit=str(path), task="t2v-1.3B")

    return write


@pytest.mark.parametrize(
    ("stored", "precision", "expected"),
    [
        (torch.bfloat16, "bf16", torch.bfloat16),
        (torch.bfloat16, "no", torch.bfloat16),
        (torch.bfloat16, "fp16", "DiT weights are in bf16, mixed precision must be auto, bf16 or no"),
        (torch.float16, "no", torch.float16),
        (torch.float16, "bf16", "DiT weights are in fp16, mixed precision must be auto, fp16 or no"),
        (torch.float32, "bf16", torch.bfloat16),
        (torch.float32, "fp16", torch.float16),
        (torch.float32, "no", torch.float32),
    ],
)
def test_compute_dtype_follows_file_and_mixed_precision(wan_file, stored, precision, expected):
    settings = wan_file(stored)
    if isinstance(expected, str):
        with pytest.raises(UserError, match=expected):
            trained_dtype(settings, precision)
    else:
        assert trained_dtype(settings, precision) == expected


def test_the_loaded_transformer_is_frozen_and_in_eval_mode(wan_file):
    model = load_transformer(wan_file(torch.bfloat16), CPU, torch.bfloat16)
    assert not model.training
    assert {(p.dtype, p.requires_grad, p.device.type) for p in model.parameters()} == {(torch.bfloat16, False, "cpu")}


def test_sizes_of_another_task_are_rejected_naming_the_right_one(wan_file, tmp_path):
    with pytest.raises(UserError, match=r"tiny.safetensors: .*dim 32 instead of 1536.*no Wan2.1 task has these sizes"):
        load_transformer(wan_file(geometry=None), CPU, torch.float32)
    with pytest.raises(UserError, match="in_dim 16 instead of 36"):
        load_transformer(wan_file().changed(task="i2v-14B"), CPU, torch.float32)
    from musubi_backend.architectures.wan.geometry import geometry_of
    from musubi_backend.weights.safetensors_file import Header

    large = WanGeometry(dim=5120, ffn_dim=13824, num_heads=40, num_layers=40)
    assert geometry_of(_header(large), "t2v-14B") == large
    with pytest.raises(UserError, match=r"use --task t2v-14B or t2i-14B or t2v-A14B"):
        geometry_of(_header(large), "t2v-1.3B")
    with pytest.raises(UserError, match=r"lacks 'patch_embedding.weight'"):
        geometry_of(Header({}, {}), "t2v-1.3B")


def _header(geometry: WanGeometry):
    from musubi_backend.architectures.wan.model import WanTransformer
    from musubi_backend.weights.safetensors_file import Header, TensorInfo

    with torch.device("meta"):
        state = WanTransformer(geometry).state_dict()
    return Header({name: TensorInfo("BF16", tuple(t.shape), 0, 0) for name, t in state.items()}, {})
