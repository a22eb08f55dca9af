"""Writing a LoRA that was computed layer by layer, and saying how much of the deltas it could not hold."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from .. import events, job
from ..console import Bar
from ..counted import counted
from ..errors import StopRequested
from ..weights.safetensors_file import save_atomic
from ..weights.streamed_file import with_hashes
from .factors import Factors
from .layouts import MUSUBI_PREFIX

T = TypeVar("T")


@dataclass
class Losses:
    """What layers lost to a lower rank, as shares of their Frobenius norms."""

    _layers: dict[str, tuple[float, float]] = field(default_factory=dict)

    def add(self, path: str, factors: Factors) -> None:
        self._layers[path] = (factors.lost, factors.norm)

    def report(self, rank: int | None, left: int = 0) -> None:
        """Print the loss over all layers and of the worst one, and tell the job. Nothing was lost without a rank.

        left: how many tensors were left out of the result."""
        if rank is None or not self._layers:
            print(f"exact, without {counted(left, 'tensor')} left out" if left else "exact: nothing was lost", flush=True)
            return
        lost, norm = (sum(values[index] ** 2 for values in self._layers.values()) ** 0.5 for index in (0, 1))
        share, (worst, path) = lost / norm if norm else 0.0, max((_share(*values), path) for path, values in self._layers.items())
        print(f"rank {rank}: {share:.2%} of the change was lost (Frobenius norm); most in {path}: {worst:.2%}", flush=True)
        job.emit(events.LoRAError(rank, share, worst, path))


def save_lora(path: Path, layers: Mapping[str, Mapping[str, Tensor]], metadata: Mapping[str, str], dtype: torch.dtype) -> None:
    """Write layers (dotted path -> parts) in musubi-tuner's layout, with rank, alpha and hashes in the metadata."""
    tensors: dict[str, Tensor] = {}
    ranks = set()
    for layer, parts in layers.items():
        for part, tensor in parts.items():
            tensors[f"{MUSUBI_PREFIX}{layer.replace('.', '_')}.{part}"] = tensor.to(dtype).contiguous()
        if "lora_down.weight" in parts:
            ranks.add(len(parts["lora_down.weight"]))
    size = {"ss_network_dim": str(max(ranks)), "ss_network_alpha": str(float(max(ranks)))} if ranks else {}
    save_atomic(tensors, path, with_hashes(tensors, {**metadata, **size}))


def watched(items: Mapping[str, T], description: str) -> Iterator[tuple[str, T]]:
    """The items, with a progress bar. StopRequested when the job is asked to stop."""
    with Bar(len(items), description, unit="layer") as bar:
        for item in items.items():
            if job.stop_requested():
                raise StopRequested("nothing was written")
            yield item
            bar.update()


def _share(lost: float, norm: float) -> float:
    return lost / norm if norm else 0.0
