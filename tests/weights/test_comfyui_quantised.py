"""What ComfyUI itself reads out of an fp8 file is what we read."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
import torch
from musubi_backend.memory.fp8 import hold_in_fp8, quantise
from musubi_backend.weights.loader import load_into, open_weights
from musubi_backend.weights.safetensors_file import load, save_atomic
from torch import Tensor, nn

_THEIRS = """
import json, sys
checkout, source, inputs, result = sys.argv[1:5]
sys.path.insert(0, checkout)
sys.argv = ["comfyui", "--cpu"]
import comfy.options
comfy.options.enable_args_parsing()
import torch, comfy.ops, comfy.utils
from safetensors import safe_open
from safetensors.torch import load_file, save_file
with safe_open(source, "pt") as file:
    metadata = file.metadata() or {}
state, _ = comfy.utils.convert_old_quants(load_file(source), "", metadata=metadata)
model = torch.nn.Module()
model.first = comfy.ops.mixed_precision_ops({}, torch.float32, full_precision_mm=True).Linear(128, 32, device="cpu", dtype=torch.float32)
assert not any(model.load_state_dict(state, strict=False))
with torch.no_grad():
    save_file({"y": model.first(load_file(inputs)["x"]).contiguous()}, result)
"""

LAYOUTS = ("scaled_fp8", "comfy_quant", "metadata")


def _files(folder: Path) -> dict[str, Path]:
    generator = torch.Generator().manual_seed(0)
    stored, scale = quantise(torch.randn(32, 128, generator=generator), "tensor")
    assert scale is not None
    layer = {"first.weight": stored, "first.bias": torch.randn(32, generator=generator)}
    named = json.dumps({"format": "float8_e4m3fn"}).encode()
    tensors: dict[str, dict[str, Tensor]] = {
        "scaled_fp8": {"scaled_fp8": torch.zeros(2).to(torch.float8_e4m3fn), "first.scale_weight": scale.reshape(())},
        "comfy_quant": {"first.weight_scale": scale.reshape(()), "first.comfy_quant": torch.tensor(list(named), dtype=torch.uint8)},
        "metadata": {"first.weight_scale": scale.reshape(())},
    }
    about = {"_quantization_metadata": json.dumps({"format_version": "1.0", "layers": {"first": {"format": "float8_e4m3fn"}}})}
    for layout in LAYOUTS:
        save_atomic({**layer, **tensors[layout]}, folder / f"{layout}.safetensors", about if layout == "metadata" else None)
    return {layout: folder / f"{layout}.safetensors" for layout in LAYOUTS}


@pytest.mark.slow
@pytest.mark.comfyui
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_linear_gives_the_same(layout: str, tmp_path: Path, comfyui_path: Path, comfyui_python: Path) -> None:
    path = _files(tmp_path)[layout]
    x = torch.randn(4, 128, generator=torch.Generator().manual_seed(1))
    save_atomic({"x": x}, tmp_path / "x.safetensors")
    arguments = [str(comfyui_path), str(path), str(tmp_path / "x.safetensors"), str(tmp_path / "y.safetensors")]
    done = subprocess.run([str(comfyui_python), "-c", _THEIRS, *arguments], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for small in (False, True):
        model = nn.Module()
        with torch.device("meta"):
            model.first = nn.Linear(128, 32)
        if small:
            hold_in_fp8(model, ["first"], "block")
        load_into(model, open_weights(path), dtype=torch.float32)
        with torch.no_grad():
            torch.testing.assert_close(model.first(x), load(tmp_path / "y.safetensors")["y"], rtol=1e-5, atol=1e-5)
