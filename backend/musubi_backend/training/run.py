"""Everything one training needs, put together by `train` and gone through by the loop."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .saved_states import Position

if TYPE_CHECKING:
    import torch
    from torch import nn

    from ..architectures.protocol import Architecture
    from ..dataset.batches import CachedDataset, CachedItem
    from ..lora.run_network import Network
    from .checkpoints import Checkpoints
    from .distributed import Processes
    from .optimizers import Choice
    from .samples import Samples
    from .schedules import Schedule
    from .settings import TrainingSettings
    from .trackers import Trackers


@dataclass
class Run:
    """held: what is not trained on, for validation; position, losses, history: where it begins, if not at the start."""

    settings: TrainingSettings
    architecture: Architecture
    dataset: CachedDataset
    processes: Processes
    dtype: torch.dtype
    transformer: nn.Module
    network: Network
    choice: Choice
    schedule: Schedule
    seed: int
    total_steps: int
    epochs: int
    checkpoints: Checkpoints
    samples: Samples
    trackers: Trackers
    facts: dict[str, Any]
    held: tuple[CachedItem, ...] = ()
    position: Position = field(default_factory=Position)
    losses: list[float] = field(default_factory=list)
    history: list[float] = field(default_factory=list)

    def values(self) -> dict[str, Any]:
        """Of all settings that are in use by now, by the names of their options."""
        return {**self.architecture.settings.values(), **self.settings.values()}
