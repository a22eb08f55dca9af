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
    """file: its name. make: from a seed to its tensors and metadata. beside: writes what else belongs into the folder (a tokenizer)."""

    file: str
    make: Callable[[int], Content]
    beside: Callable[[Path], None] | None = None
