"""Averaged LoRAs: bit for bit what musubi-tuner wrote, and what is said about files that cannot be averaged."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from musubi_backend.errors import UserError
from musubi_backend.lora.ema_schedule import SIGMA_REL_LIMIT, gamma, linear_betas, power_betas, shares
from musubi_backend.weights.arrays import as_bytes, from_float32, of_bytes, rounded, to_float32
from musubi_backend.weights.safetensors_file import load, read_header, save_atomic

CASES = ("beta095", "default", "sigma_rel_0.1", "sigma_rel_0.2", "one_file", "two_files_beta2", "mtime_sorted_reversed_args",
         "no_sort_reversed_args", "last_without_metadata", "missing_key_in_second")  # fmt: skip


@pytest.fixture
def checkpoints(shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The recorded checkpoints in the current folder, with the times they were made; the recorded cases."""
    for path in (shared / "golden" / "ema").glob("*.safetensors"):
        shutil.copyfile(path, tmp_path / path.name)
    for number in range(1, 7):
        os.utime(tmp_path / f"ckpt-{number:06d}.safetensors", (1700000000 + 100 * number,) * 2)
    monkeypatch.chdir(tmp_path)
    cases: dict[str, Any] = json.loads((shared / "golden" / "ema" / "index.json").read_text(encoding="utf-8"))
    return cases


@pytest.mark.parametrize("name", CASES)
def test_the_average_is_musubi_tuners_bit_for_bit(name, checkpoints, run_tool, capsys):
    case = checkpoints["cases"][name]
    wanted = load(f"out_{name}.safetensors")
    run_tool("lora_post_hoc_ema", *case["paths"], *case["argv"], "--output_file", f"out_{name}.safetensors")
    assert capsys.readouterr().out.splitlines() == case["stdout"]
    written = load(f"out_{name}.safetensors")
    assert written.keys() == wanted.keys()
    for key, tensor in wanted.items():
        assert written[key].dtype == tensor.dtype and torch.equal(written[key], tensor), key
    assert read_header(f"out_{name}.safetensors").metadata == case["metadata"]


def test_the_times_of_files_order_them_not_their_names(tmp_path, run_tool):
    """Oldest first: each newer one takes half of what was there."""
    for name, value, time in (("c", 8.0, 1), ("a", 4.0, 2), ("b", 2.0, 3)):
        save_atomic({"x.lora_up.weight": torch.full((2, 2), value)}, tmp_path / name)
        os.utime(tmp_path / name, (time, time))
    files = [tmp_path / name for name in "abc"]
    run_tool("lora_post_hoc_ema", *files, "--beta", "0.5", "--output_file", tmp_path / "out")
    assert load(tmp_path / "out")["x.lora_up.weight"].tolist() == [[4.0] * 2] * 2  # (8 + 4) / 2 = 6, (6 + 2) / 2 = 4
    run_tool("lora_post_hoc_ema", *files, "--beta", "0.5", "--no_sort", "--output_file", tmp_path / "out")
    assert load(tmp_path / "out")["x.lora_up.weight"].tolist() == [[5.5] * 2] * 2  # (4 + 2) / 2 = 3, (3 + 8) / 2 = 5.5


@pytest.mark.parametrize(
    ("name", "key", "files"),
    [
        ("alpha_mismatch", "lora_unet_blocks_0_self_attn_v.alpha", ("ckpt-000001", "bad_alpha")),
        ("extra_key_in_second", "lora_unet_extra.lora_up.weight", ("ckpt-000001", "extra_key")),
    ],
)
def test_files_that_do_not_belong_together(name, key, files, checkpoints, capsys, refusal, tmp_path):
    case = checkpoints["cases"][name]
    message = refusal("lora_post_hoc_ema", *case["paths"], *case["argv"], "--output_file", "out.safetensors")
    assert key in message and all(file in message for file in files)
    assert not (tmp_path / "out.safetensors").exists()


def test_the_lines_before_a_refusal_are_musubi_tuners(checkpoints, capsys):
    from musubi_backend.__main__ import main

    case = checkpoints["cases"]["alpha_mismatch"]
    assert main(["lora_post_hoc_ema", *case["paths"], *case["argv"], "--output_file", "out.safetensors"]) == 1
    assert capsys.readouterr().out.splitlines() == case["stdout"]


def test_several_widths_in_one_pass_equal_one_after_the_other(checkpoints, run_tool, tmp_path):
    paths = [f"ckpt-{number:06d}.safetensors" for number in range(1, 7)]
    run_tool("lora_post_hoc_ema", *paths, "--sigma_rels", 0.1, 0.2, 0.25, "--output_file", "many.safetensors")
    for width in ("0.1", "0.2", "0.25"):
        run_tool("lora_post_hoc_ema", *paths, "--sigma_rel", width, "--output_file", "one.safetensors")
        assert Path(f"many-sigma{width}.safetensors").read_bytes() == Path("one.safetensors").read_bytes()
    assert not Path("many.safetensors").exists()


def test_gamma_is_the_recorded_one(checkpoints):
    for width, recorded in checkpoints["gamma"].items():
        if isinstance(recorded, float):
            assert gamma(float(width)) == pytest.approx(recorded, rel=1e-9)
        else:
            with pytest.raises(UserError, match="out of range"):
                gamma(float(width))
    assert power_betas(0.2, 30) == pytest.approx(checkpoints["betas_for_sigma_rel_0.2"], abs=1e-9)


@given(st.floats(0.01, SIGMA_REL_LIMIT - 1e-6), st.integers(1, 50))
def test_shares_add_up_and_the_first_file_of_a_power_average_counts_for_nothing(sigma_rel, steps):
    parts = shares(power_betas(sigma_rel, steps))
    assert sum(parts) == pytest.approx(1) and parts[0] == 0 and len(parts) == steps + 1


def test_the_decay_goes_evenly_to_its_end():
    assert linear_betas(0.9, 0.5, 3) == pytest.approx((0.9, 0.7, 0.5))
    assert linear_betas(0.9, 0.5, 1) == (0.9,) and linear_betas(0.9, None, 2) == (0.9, 0.9) and linear_betas(0.9, None, 0) == ()


@settings(deadline=None)
@given(st.lists(st.floats(width=32, allow_nan=False) | st.sampled_from([65520.0, 1.00390625, 1.01171875, 1e-41]), min_size=1, max_size=20))
def test_rounding_is_torchs(values):
    exact = np.array(values, np.float32)
    for dtype, torch_dtype in (("BF16", torch.bfloat16), ("F16", torch.float16), ("F32", torch.float32), ("F8_E4M3", torch.float8_e4m3fn)):
        wanted = torch.tensor(values, dtype=torch.float32).to(torch_dtype)
        ours = from_float32(exact.copy(), dtype)
        assert torch.equal(of_bytes(ours, dtype).float().nan_to_num(7), wanted.float().nan_to_num(7))
        assert np.array_equal(to_float32(ours, dtype), wanted.float().numpy(), equal_nan=True)
    assert np.isnan(to_float32(from_float32(np.array([np.nan], np.float32), "BF16"), "BF16"))[0]
    assert rounded(0.1, "BF16") == torch.tensor(0.1).bfloat16().item()


@settings(deadline=None, max_examples=20)
@given(
    st.lists(
        st.tuples(st.sampled_from(["float32", "bfloat16", "float16"]), st.lists(st.integers(0, 5), max_size=3)), min_size=1, max_size=4
    ),
    st.integers(1, 4),
    st.floats(0, 1),
)
def test_any_shapes_and_dtypes_average_as_torch_does(tmp_path_factory, tensors, count, beta):
    from musubi_backend.__main__ import main

    folder = tmp_path_factory.mktemp("ema")
    states = [{f"t{i}": torch.randn(shape).to(getattr(torch, dtype)) for i, (dtype, shape) in enumerate(tensors)} for _ in range(count)]
    paths = []
    for number, state in enumerate(states):
        paths.append(str(folder / f"{number}.safetensors"))
        save_atomic(state, paths[-1])
    output = folder / "out.safetensors"
    assert main(["lora_post_hoc_ema", *paths, "--no_sort", "--beta", repr(beta), "--output_file", str(output)]) == 0
    for key, tensor in load(output).items():
        average = states[0][key].float()
        for state in states[1:]:
            average = average * beta + state[key].float() * (1 - beta)
        assert tensor.dtype == states[0][key].dtype and torch.equal(tensor, average.to(tensor.dtype))


def bad_inputs(folder: Path) -> dict[str, tuple[list[object], str]]:
    """What is wrong -> (arguments, what the message says)."""
    good = folder / "ckpt-000001.safetensors"
    (folder / "cut.safetensors").write_bytes(good.read_bytes()[:-20])
    (folder / "text.safetensors").write_text("no tensors here at all", encoding="utf-8")
    save_atomic({key: tensor[..., :-1] if tensor.ndim else tensor for key, tensor in load(good).items()}, folder / "narrow.safetensors")
    out = ["--output_file", folder / "out.safetensors"]
    return {
        "truncated": ([good, folder / "cut.safetensors", *out], "cut.safetensors is truncated"),
        "no safetensors": ([good, folder / "text.safetensors", *out], "text.safetensors is not a safetensors file"),
        "absent": ([good, folder / "absent.safetensors", *out], "absent.safetensors does not exist"),
        "another shape": ([good, folder / "narrow.safetensors", "--no_sort", *out], "narrow.safetensors. Only checkpoints"),
        "too wide": ([good, good, "--sigma_rel", "0.29", *out], "0.29 is out of range"),
        "no width": ([good, good, "--sigma_rel=-1", *out], "--sigma_rel: must be at least 0"),
        "beta": ([good, good, "--beta", "1.5", *out], "--beta: must be at most 1"),
        "two ways": ([good, good, "--sigma_rel", "0.2", "--sigma_rels", "0.1", "--output_file", "x"], "exclude each other"),
        "output is an input": ([good, folder / "ckpt-000002.safetensors", "--output_file", good], "is the input"),
        "output is a folder": ([good, good, "--output_file", folder], "is a folder"),
        "no folder": ([good, good, "--output_file", good / "x.safetensors"], "is a file, so that the folder"),
        "no files": (out, "PATH"),
    }


def test_bad_input_is_rejected_by_name(checkpoints, refusal, tmp_path):
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    for what, (arguments, message) in bad_inputs(tmp_path).items():
        assert message in refusal("lora_post_hoc_ema", *arguments), what
    assert all((tmp_path / name).read_bytes() == content for name, content in before.items())
    assert not list(tmp_path.glob(".*part"))


def test_a_full_disk_leaves_nothing_half(checkpoints, refusal: Callable[..., str], small_disk: Path, tmp_path: Path):
    paths = []
    for number in (1, 2):
        paths.append(tmp_path / f"big-{number}.safetensors")
        save_atomic({"a": torch.randn(1 << 20)}, paths[-1])
    assert "no space left" in refusal("lora_post_hoc_ema", *paths, "--output_file", small_disk / "out.safetensors")
    assert not list(small_disk.iterdir())


def test_torch_is_not_imported(checkpoints):
    code = "import sys; from musubi_backend.__main__ import main; print(main(sys.argv[1:]), 'torch' in sys.modules)"
    words = ["lora_post_hoc_ema", "ckpt-000001.safetensors", "ckpt-000002.safetensors", "--output_file", "o.safetensors"]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "0 False"


def test_arrays_and_bytes():
    array = np.arange(6, dtype=np.float32).reshape(2, 3).T
    assert bytes(as_bytes(array)) == array.copy().tobytes() and len(as_bytes(np.empty((0, 3), np.float32))) == 0
