"""Running a transformer's blocks: the one place that wraps a block call.

Gradient checkpointing, block streaming (fetch weights before, make room after) and stopping between two blocks happen here, without the
models knowing. A block may be compiled (`memory.compiling`); what is done here is outside of what is compiled.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from .. import job
from .passing import when_gradient_passes
from .recompute import recomputed


class Stream(Protocol):
    """What brings a block's weights when it runs (`memory.streaming.BlockStream`)."""

    def before(self, block: nn.Module, x: Tensor) -> Tensor:
        """Have the block's weights; its input, through which backward says that it is done with them."""

    def after(self, block: nn.Module, x: Tensor) -> Tensor:
        """Make room; its output, through which backward asks for them again."""


def run_block(block: nn.Module | Callable[..., Tensor], x: Tensor, *shared: Any, recompute: bool = False, offload: bool = False) -> Tensor:
    """block(x, *shared).

    recompute: keep only x for backward and run the block again there. offload: keep that x in (pinned) host memory.
    shared: inputs of all blocks (text, tables), held by reference and never offloaded.
    Raises StopRequested, here or as the gradient comes back, once the job was asked to stop (`job.leave_if_asked`).
    """
    job.leave_if_asked()
    x = when_gradient_passes(x, job.leave_if_asked)
    stream: Stream | None = getattr(block, "stream", None)
    if stream is None or not isinstance(block, nn.Module):
        return _run(block, x, shared, recompute, offload)
    return stream.after(block, _run(block, stream.before(block, x), shared, recompute, offload))


def _run(block: nn.Module | Callable[..., Tensor], x: Tensor, shared: tuple[Any, ...], recompute: bool, offload: bool) -> Tensor:
    if not (recompute and torch.is_grad_enabled()):
        result: Tensor = block(x, *shared)
        return result
    return recomputed(lambda x: block(x, *shared), x, offload)
