"""What loading a `fp8_scaled` file of Wan 14B takes beyond its own bytes: files of few of its layers, extrapolated to 40.

    python -m benchmarks.loading [--layers 1 3] [--work FOLDER]

ComfyUI's layout (8-bit weights with a scale each, the rest bf16), random bytes. Each file is loaded in a process of its own as a trainer
loads it with `--fp8_base --fp8_scaled`; the peak is the kernel's, less that of the same process with nothing loaded.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from math import prod
from pathlib import Path

import numpy as np
import torch
from musubi_backend import architectures
from musubi_backend.architectures import protocol
from musubi_backend.architectures.wan.geometry import WanGeometry
from musubi_backend.architectures.wan.model import WanTransformer
from musubi_backend.memory.plan import fp8_layers
from musubi_backend.options.parser import read
from musubi_backend.options.registry import tool
from musubi_backend.weights.geometry import GEOMETRY_KEY
from musubi_backend.weights.safetensors_file import DTYPE_BITS, layout_of

from .process import run

WHOLE = 40
_PIECE = 1 << 26


def write(layers: int, path: Path) -> int:
    """A file of so many layers. Returns its bytes."""
    geometry = WanGeometry(5120, 13824, 40, layers)
    with torch.device("meta"):
        model = WanTransformer(geometry)
    small = {f"{name}.weight" for name in fp8_layers(model, architectures.cards()["wan"])}
    entries = {name: ("F8_E4M3" if name in small else "BF16", tuple(one.shape)) for name, one in model.state_dict().items()}
    entries |= {f"{name.removesuffix('weight')}scale_weight": ("F32", ()) for name in small}
    _, header = layout_of(entries, {GEOMETRY_KEY: geometry.to_json()})
    size = sum(prod(shape) * DTYPE_BITS[dtype] // 8 for dtype, shape in entries.values())
    piece = np.random.default_rng(0).integers(0, 56, _PIECE, np.uint8).tobytes()  # small numbers in every dtype
    with path.open("wb") as file:
        file.write(header)
        for start in range(0, size, _PIECE):
            file.write(piece[: size - start])
    return len(header) + size


def load(path: str) -> None:
    """As a trainer does; nothing where there is no path."""
    if path:
        words = ["--dit", path, "--task", "t2v-14B", "--fp8_base", "--fp8_scaled", "--sdpa", "--dataset_config", "-", "--output_dir", "-",
                 "--output_name", "-", "--network_module", "networks.lora_wan"]  # fmt: skip
        architecture = protocol.load("wan").configured(vars(read(tool("wan_train_network"), words)))
        architecture.transformer(torch.device("cpu"), torch.bfloat16)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, nargs=2, default=[1, 3])
    parser.add_argument("--work", type=Path, help="where files go (default: a temporary folder)")
    parser.add_argument("--load", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.load is not None:
        load(given.load)
        return
    with tempfile.TemporaryDirectory(dir=given.work) as folder:
        sizes, peaks = {}, {}
        for layers in (0, *given.layers):
            path = Path(folder) / "dit.safetensors"
            sizes[layers] = write(layers, path) / 1e6 if layers else 0.0
            words = [sys.executable, "-m", "benchmarks.loading", "--load", str(path) if layers else ""]
            peaks[layers] = run(words, Path(folder) / "log.txt", {}).rss_mb * 1.048576  # MiB
        few, more = given.layers

        def at(values: dict[int, float]) -> float:
            return values[few] + (WHOLE - few) * (values[more] - values[few]) / (more - few)

        for layers, peak, size in (*((layers, peaks[layers], sizes[layers]) for layers in given.layers), (WHOLE, at(peaks), at(sizes))):
            known = "" if layers in given.layers else ", extrapolated"
            print(f"{layers} layers{known}: peak {peak - peaks[0]:.0f} MB, file {size:.0f} MB, {(peak - peaks[0]) / size:.2f} of it")


if __name__ == "__main__":
    main()
