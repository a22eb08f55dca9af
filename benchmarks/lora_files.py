"""The files of the LoRA benchmark: `python -m benchmarks.lora_files FOLDER`. What is there already is left alone."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

RANK, CHECKPOINTS = 32, 10
DIM, FFN_DIM, HEADS, LAYERS = 1536, 8960, 12, 30  # Wan2.1 1.3B

Shapes = dict[str, tuple[int, ...]]


def main(work: Path) -> None:
    from musubi_backend.weights.safetensors_file import save_atomic

    model = shapes()
    linears = {name: shape for name, shape in model.items() if name.startswith("blocks.") and len(shape) == 2 and name.endswith(".weight")}
    for number in range(1, CHECKPOINTS + 1):
        path = work / f"lora-{number:06d}.safetensors"
        if not path.exists():
            save_atomic(lora(linears, number), path, {"ss_network_dim": str(RANK)})
        os.utime(path, (1.7e9 + number,) * 2)
    save_atomic(lora({"blocks.0.ffn.0.weight": (8, 8)}, 0), work / "tiny.safetensors")
    random_file(work / "tiny_dit.safetensors", {"blocks.0.ffn.0.weight": (8, 8)})
    if not (work / "dit.safetensors").exists():
        random_file(work / "dit.safetensors", model)


def shapes() -> Shapes:
    import torch
    from musubi_backend.architectures.wan.geometry import WanGeometry
    from musubi_backend.architectures.wan.model import WanTransformer

    with torch.device("meta"):
        model = WanTransformer(WanGeometry(dim=DIM, ffn_dim=FFN_DIM, num_heads=HEADS, num_layers=LAYERS))
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def lora(linears: Shapes, seed: int) -> dict[str, Tensor]:
    """A bf16 LoRA in musubi-tuner's layout."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, (rows, columns) in linears.items():
        adapter = "lora_unet_" + name.removesuffix(".weight").replace(".", "_")
        state[f"{adapter}.lora_down.weight"] = torch.randn(RANK, columns, generator=generator).mul_(0.02).bfloat16()
        state[f"{adapter}.lora_up.weight"] = torch.randn(rows, RANK, generator=generator).mul_(0.02).bfloat16()
        state[f"{adapter}.alpha"] = torch.tensor(16.0).bfloat16()
    return state


def random_file(path: Path, tensors: Shapes) -> None:
    """A bf16 model of the same random numbers over and over, written without holding it."""
    import torch
    from musubi_backend.weights.streamed_file import Target, write

    largest = max(torch.Size(shape).numel() for shape in tensors.values())
    values = torch.randn(largest, generator=torch.Generator().manual_seed(0)).mul_(0.02).bfloat16().view(torch.uint8).numpy()

    def make(name: str) -> Sequence[memoryview]:
        return [values[: 2 * torch.Size(tensors[name]).numel()].data]

    write([Target(path)], {name: ("BF16", shape) for name, shape in tensors.items()}, make)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
