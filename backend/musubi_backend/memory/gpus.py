"""How fast a GPU multiplies and copies: data sheets, or a short measurement.

multiplies: 10^12 operations per second of dense bf16 products with float32 sums; copies: 10^9 bytes per second from system RAM (PCIe
4.0 x16 carries 25, 5.0 x16 50; fewer lanes less). From NVIDIA's white papers of GA102, AD102 and Blackwell, and the data sheets of A100 and
H100.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

SHARE = 0.6
"""Of a data sheet's products that a training step reaches."""

_ENOUGH = 0.7  # seconds that each measurement takes


@dataclass(frozen=True)
class Speed:
    """source: where it is from, for people."""

    multiplies: float
    copies: float
    source: str

    def seconds(self, operations: int, to_device: int) -> float:
        """Of a step: weights are copied while others are multiplied."""
        return max(operations / (self.multiplies * 1e12), to_device / (self.copies * 1e9))


_SHEETS = {
    "RTX 3060": (51, 25), "RTX 3070": (81, 25), "RTX 3080": (119, 25), "RTX 3090": (71, 25), "RTX 4060": (60, 12), "RTX 4070": (117, 25),
    "RTX 4080": (97, 25), "RTX 4090": (165, 25), "RTX 5070": (62, 50), "RTX 5080": (113, 50), "RTX 5090": (210, 50), "RTX A6000": (155, 25),
    "A100": (312, 25), "H100": (989, 50), "H200": (989, 50),
}  # fmt: skip
NAMES = tuple(_SHEETS)


def of_sheet(name: str) -> Speed | None:
    """Of the GPU that has one of `NAMES` in its own; None for others, and for those of laptops, which have half the speed of their
    namesakes."""
    found = next((one for one in sorted(NAMES, key=len, reverse=True) if re.search(rf"{one}(?!\d)(?! Laptop)", name)), None)
    if found is None:
        return None
    multiplies, copies = _SHEETS[found]
    return Speed(multiplies * SHARE, copies, f"{SHARE:.0%} of the data sheet of an {found}")


def of_device(device: torch.device) -> Speed | None:
    """Of a GPU that is there: of the table where it is in it, which costs nothing, else measured. None for others, and
    where it cannot be."""
    import torch

    if device.type != "cuda" or not torch.cuda.is_available():
        return None
    return of_sheet(torch.cuda.get_device_name(device)) or tried(device)


def tried(device: torch.device) -> Speed | None:
    """What `measured` says; None where the GPU is full, or its driver pins no memory."""
    try:
        return measured(device)
    except RuntimeError:
        return None


def measured(device: torch.device) -> Speed:
    """Two seconds of matrix products in bf16 and of copies from pinned memory, on a CUDA device that is otherwise idle."""
    import torch

    a, b = (torch.randn(4096, 4096, device=device, dtype=torch.bfloat16) for _ in range(2))
    host = torch.empty(256 * 2**20, dtype=torch.uint8, pin_memory=True)
    there = torch.empty_like(host, device=device)

    def rate(work: object, amount: float) -> float:
        assert callable(work)
        work()
        torch.cuda.synchronize(device)
        start, count = time.perf_counter(), 0
        while time.perf_counter() - start < _ENOUGH:
            work()
            torch.cuda.synchronize(device)
            count += 1
        return amount * count / (time.perf_counter() - start)

    multiplies = rate(lambda: torch.mm(a, b), 2 * 4096**3) / 1e12
    copies = rate(lambda: there.copy_(host, non_blocking=True), float(host.nbytes)) / 1e9
    return Speed(multiplies, copies, f"measured: {multiplies:.0f} TFLOP/s, {copies:.0f} GB/s")
