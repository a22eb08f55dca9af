"""Running a transformer's blocks: the one place that wraps a block call.

Gradient checkpointing lives here; block streaming (fetch weights before, release after), selective checkpointing (keep
attention outputs) and regional compilation (a compiled `block`) belong here too, without the models knowing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .recompute import recomputed


def run_block(block: nn.Module | Callable[..., Tensor], x: Tensor, *shared: Any, recompute: bool = False, offload: bool = False) -> Tensor:
    """block(x, *shared).

    recompute: keep only x for backward and run the block again there. offload: keep that x in (pinned) host memory.
    shared: inputs of all blocks (text, tables), held by reference and never offloaded.
    """
    if not (recompute and torch.is_grad_enabled()):
        result: Tensor = block(x, *shared)
        return result
    return recomputed(lambda x: block(x, *shared), x, offload)
