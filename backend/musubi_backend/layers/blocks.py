"""Running a transformer's blocks: the one place that wraps a block call.

Gradient checkpointing, block streaming (fetch weights before, make room after) and stopping between two blocks happen here, without the
models knowing. A block may be compiled (`memory.compiling`); what is done here is outside of what is compiled.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from .. import job
from .passing import when_gradient_passes
from .recompute import Tier, recomputed


class Stream(Protocol):
    """What brings a block's weights when it runs (`memory.streaming.BlockStream`)."""

    def before(self, block: nn.Module, x: Tensor) -> Tensor:
        """Have the block's weights; its input, through which backward says that it is done with them."""

    def after(self, block: nn.Module, x: Tensor) -> Tensor:
        """Make room; its output, through which backward asks for them again."""


class KeptAttention(NamedTuple):
    """In how many of the recomputed blocks the attention's output waits for backward, on the device or in system RAM; the others run
    their attention twice."""

    on_device: int = 0
    in_ram: int = 0

    def tier(self, following: int) -> Tier:
        """Of the block that has `following` recomputed ones behind it. The last ones wait the shortest time, so they wait on the device;
        those before them have the longest time for copies."""
        if following < self.on_device:
            return Tier.ON_DEVICE
        return Tier.IN_RAM if following < self.on_device + self.in_ram else Tier.RECOMPUTED


class Checkpointed(nn.Module):
    """A transformer whose blocks can be recomputed in backward. gradient_checkpointing_cpu_offload: their inputs wait in system RAM."""

    def __init__(self) -> None:
        super().__init__()
        self.gradient_checkpointing = False
        self.gradient_checkpointing_cpu_offload = False
        self.kept_attention = KeptAttention()

    def run_in_turn(self, blocks: Sequence[nn.Module], x: Tensor, *shared: Any) -> Tensor:
        """x through all of `blocks`. What the last one would keep is needed at once, so recomputing it would save no memory."""
        last = len(blocks) - 1
        for number, block in enumerate(blocks):
            recompute, offload = self.gradient_checkpointing and number != last, self.gradient_checkpointing_cpu_offload
            x = run_block(block, x, *shared, recompute=recompute, offload=offload, tier=self.kept_attention.tier(last - 1 - number))
        return x


def run_block(
    block: nn.Module | Callable[..., Tensor],
    x: Tensor,
    *shared: Any,
    recompute: bool = False,
    offload: bool = False,
    tier: Tier = Tier.RECOMPUTED,
) -> Tensor:
    """block(x, *shared).

    recompute: keep only x for backward and run the block again there. offload: keep that x in (pinned) host memory. tier: what becomes of
    the attention's output. shared: inputs of all blocks (text, tables), held by reference and never offloaded.
    Raises StopRequested, here or as the gradient comes back, once the job was asked to stop (`job.leave_if_asked`).
    """

    def run(x: Tensor) -> Tensor:
        result: Tensor = block(x, *shared)
        return result

    def run_or_record(x: Tensor) -> Tensor:
        return recomputed(run, x, offload, tier) if recompute and torch.is_grad_enabled() else run(x)

    job.leave_if_asked()
    x = when_gradient_passes(x, job.leave_if_asked)
    stream: Stream | None = getattr(block, "stream", None)
    if stream is None or not isinstance(block, nn.Module):
        return run_or_record(x)
    return stream.after(block, run_or_record(stream.before(block, x)))
