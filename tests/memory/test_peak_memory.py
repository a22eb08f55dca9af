"""What loading in fp8 takes at its worst, read from Linux."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from musubi_backend.architectures.wan.model import WanGeometry, WanTransformer
from musubi_backend.weights import loader
from musubi_backend.weights.safetensors_file import save_atomic

_LOAD = """
import sys
from pathlib import Path
import torch
from musubi_backend.architectures.wan.load import load_transformer
from musubi_backend.architectures.wan.settings import WanSettings
def megabytes(what):
    return next(int(line.split()[1]) / 1024 for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(what))
before = megabytes("VmRSS")
given = {"dit": sys.argv[1], "task": "t2v-1.3B", "fp8": sys.argv[2] != "none", "fp8_scaled": sys.argv[2] == "scaled"}
model = load_transformer(WanSettings.read(given), torch.device("cpu"), torch.bfloat16)
print(megabytes("VmHWM") - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the process's peak memory from Linux's /proc")
def test_loading_in_fp8_never_takes_what_16_bits_take(tmp_path: Path) -> None:
    """A model of 370 MB in bf16, nearly all of it in matrices of blocks; measured peaks +395, +247 and +274 MB."""
    geometry = WanGeometry(dim=1536, ffn_dim=8960, num_heads=12, num_layers=4, text_dim=64, text_len=32)
    with torch.device("meta"):
        empty = WanTransformer(geometry)
    state = {name: torch.full(tensor.shape, 0.01, dtype=torch.bfloat16) for name, tensor in empty.state_dict().items()}
    save_atomic(state, tmp_path / "dit.safetensors", {"musubi_geometry": geometry.to_json()})
    peaks = {}
    # what is freed goes back to the system at once, so that the peak is what was held and not how the heap was cut up
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    for kind in ("none", "plain", "scaled"):
        command = [sys.executable, "-c", _LOAD, str(tmp_path / "dit.safetensors"), kind]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
        peaks[kind] = float(done.stdout)
    assert peaks["plain"] < 0.7 * peaks["none"], peaks
    assert peaks["scaled"] < 0.75 * peaks["none"], peaks


_CAST = """
import sys
from pathlib import Path
import torch
from musubi_backend.weights.loader import load_into, open_weights
from torch import nn
def megabytes(what):
    return next(int(line.split()[1]) / 1024 for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(what))
with torch.device("meta"):
    table = nn.Embedding(50_000, 4096)
before = megabytes("VmRSS")
load_into(table, open_weights(sys.argv[1]), "cpu", torch.bfloat16)
print(megabytes("VmHWM") - before)
assert table.weight.dtype == torch.bfloat16 and table.weight.min() == 0.5 == table.weight.max()
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the process's peak memory from Linux's /proc")
def test_a_large_tensor_is_not_there_twice_while_it_is_cast(tmp_path: Path) -> None:
    """The embedding of umt5 is a fifth of it: read whole, loading took 2 GB more than planned. Here it has 410 MB; 780 MB were taken."""
    save_atomic({"weight": torch.full((50_000, 4096), 0.5, dtype=torch.float16)}, tmp_path / "table.safetensors")
    environment = {**os.environ, "PYTHONPATH": str(Path(loader.__file__).parents[2])}
    command = [sys.executable, "-c", _CAST, str(tmp_path / "table.safetensors")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert float(done.stdout) < 390 + 64 + 30, done.stdout
