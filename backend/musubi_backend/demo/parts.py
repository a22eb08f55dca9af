"""One file of a demo model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    Content = tuple[dict[str, Tensor], dict[str, str]]


@dataclass(frozen=True)
class Part:
    """file: its name. make: from a seed to its tensors, in float32, and metadata. dtype: what the file has, as the one it stands for
    (ComfyUI's). beside: writes what else belongs into the folder (a tokenizer)."""

    file: str
    make: Callable[[int], Content]
    dtype: str
    beside: Callable[[Path], None] | None = None

    def content(self, seed: int) -> Content:
        """Tensors, numbers in `dtype`, and metadata."""
        import torch

        tensors, metadata = self.make(seed)
        dtype = getattr(torch, self.dtype)
        return {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}, metadata
