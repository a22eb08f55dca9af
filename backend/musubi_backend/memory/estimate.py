"""What a training is going to need, as data: parts of each phase, the worst of them, operations and seconds of a step. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

GB = 1e9

WEIGHTS = "weights"
LORA = "LoRA and optimizer"
KEPT = "kept for backward"
WORKING = "one block at work"
ENCODER = "text encoder"
VAE = "VAE"
IMAGE_ENCODERS = "VAE and image encoder"
DRIVER = "driver and libraries"
PARTS = (WEIGHTS, LORA, KEPT, WORKING, ENCODER, IMAGE_ENCODERS, VAE, DRIVER)
"""In the order they are shown."""

STEP = "training step"
UPDATE = "optimizer step"
PROMPTS = "encoding sample prompts"
IMAGES = "encoding sample images"
SAMPLING = "sampling"
DECODING = "decoding samples"

MARGIN = 0.1
"""How far a plan may be off: only what misses by more is refused."""


@dataclass(frozen=True)
class Phase:
    """What is on the device meanwhile. parts: bytes by name (`PARTS`)."""

    name: str
    parts: Mapping[str, int]

    @property
    def total(self) -> int:
        return sum(self.parts.values())


@dataclass(frozen=True)
class Estimate:
    """Of one training with its settings.

    phases      what comes after each other; the largest decides
    ram         bytes of weights and inputs of blocks that wait in system RAM
    operations  of matrix products and attention in one step (all of its micro-steps)
    to_device   bytes of weights that are copied to the device in one step
    blocks      of the transformer that works; `swappable`: how many of them `--blocks_to_swap` can be
    """

    phases: tuple[Phase, ...]
    ram: int
    operations: int
    to_device: int
    blocks: int = 0
    swappable: int = 0

    @property
    def worst(self) -> Phase:
        return max(self.phases, key=lambda phase: phase.total)

    @property
    def peak(self) -> int:
        """Bytes of the device's memory."""
        return self.worst.total

    def fits(self, limit: int) -> bool:
        return self.peak <= limit

    def excess(self, limit: int) -> int:
        """Bytes that are too many, of all phases."""
        return sum(max(0, phase.total - limit) for phase in self.phases)

    def cannot_fit(self, limit: int) -> bool:
        """Not even if the plan is as wrong as it may be."""
        return self.peak * (1 - MARGIN) > limit

    def sentence(self, limit: int | None = None) -> str:
        """As in "needs 13.8 GB of 15.6 GB: weights 6.9 · kept for backward 4.1 · ..."; limit: bytes there are."""
        parts = " · ".join(f"{name} {self.worst.parts[name] / GB:.1f}" for name in PARTS if self.worst.parts.get(name, 0) >= 0.05 * GB)
        where = "" if self.worst.name in (STEP, UPDATE) else f" while {self.worst.name}"
        known = "" if limit is None else f" of {size(limit)}"
        return f"needs {size(self.peak)}{known}{where}" + (f": {parts}" if parts else "")

    def as_json(self) -> dict[str, Any]:
        """Everything, in bytes."""
        return {
            "peak": self.peak, "worst": self.worst.name, "ram": self.ram, "operations": self.operations, "to_device": self.to_device,
            "phases": [{"name": phase.name, "total": phase.total, "parts": dict(phase.parts)} for phase in self.phases],
        }  # fmt: skip


def size(count: int) -> str:
    """Bytes for people."""
    return f"{count / GB:.1f} GB" if count >= 0.1 * GB else f"{count / 1e6:.1f} MB"
