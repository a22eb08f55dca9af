"""Running a transformer's blocks: the one place that wraps a block call.

Gradient checkpointing, block streaming (fetch weights before, make room after) and stopping between two blocks happen here, without the
models knowing. A block may be compiled (`memory.compiling`); what is done here is outside of what is compiled.
"""

from __future__ import annotations

from abc import abstractmethod
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

    def bring(self, block: nn.Module, *, backward: bool) -> None:
        """Have the block's weights, for all that runs it before `leave`, in this direction."""

    def leave(self, block: nn.Module, *, backward: bool) -> None:
        """Make room; after forward it comes back."""


class Prepared(NamedTuple):
    """A forward pass that has come to its blocks: those that run, their input, what all of them get besides, and what makes the
    prediction of their output."""

    blocks: Sequence[nn.Module]
    x: Tensor
    shared: tuple[Any, ...]
    finish: Callable[[Tensor], Tensor]


class Kept(NamedTuple):
    """What a block leaves for backward: everything, or (recompute) only its input, in system RAM (offload) or not, and its attention's
    output as the tier says."""

    recompute: bool = False
    offload: bool = False
    tier: Tier = Tier.RECOMPUTED


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
    """A transformer: what comes before its blocks, the blocks, which can be recomputed in backward, and what comes behind them.
    gradient_checkpointing_cpu_offload: inputs of blocks wait in system RAM."""

    def __init__(self) -> None:
        super().__init__()
        self.gradient_checkpointing = False
        self.gradient_checkpointing_cpu_offload = False
        self.kept_attention = KeptAttention()

    @abstractmethod
    def prepared(self, *inputs: Any, **named: Any) -> Prepared:
        """What comes before the blocks; the inputs are the model's."""

    def forward(self, *inputs: Any, **named: Any) -> Tensor:
        """The prediction; see `prepared`."""
        prepared = self.prepared(*inputs, **named)
        return prepared.finish(self.through_blocks(prepared))

    def through_blocks(self, prepared: Prepared) -> Tensor:
        """The output of the last block."""
        x, count = prepared.x, len(prepared.blocks)
        for number, block in enumerate(prepared.blocks):
            x = run_block(block, x, *prepared.shared, **self.kept(number, count)._asdict())
        return x

    def kept(self, number: int, count: int) -> Kept:
        """What one of `count` blocks keeps. What the last one would keep is needed at once, so recomputing it would save no memory."""
        following = count - 2 - number
        recompute = self.gradient_checkpointing and following >= 0
        return Kept(recompute, self.gradient_checkpointing_cpu_offload, self.kept_attention.tier(following))


def run_block(
    block: nn.Module | Callable[..., Tensor],
    x: Tensor,
    *shared: Any,
    recompute: bool = False,
    offload: bool = False,
    tier: Tier = Tier.RECOMPUTED,
) -> Tensor:
    """block(x, *shared), with its weights there if somebody streams them.

    recompute: keep only x for backward and run the block again there. offload: keep that x in (pinned) host memory. tier: what becomes of
    the attention's output. shared: inputs of all blocks (text, tables), held by reference and never offloaded.
    Raises StopRequested, here or as the gradient comes back, once the job was asked to stop (`job.leave_if_asked`).
    """
    stream = stream_of(block)
    if stream is None or not isinstance(block, nn.Module):
        return run_resident(block, x, shared, Kept(recompute, offload, tier))
    return stream.after(block, run_resident(block, stream.before(block, x), shared, Kept(recompute, offload, tier)))


def stream_of(block: object) -> Stream | None:
    """What brings its weights, if somebody does."""
    stream: Stream | None = getattr(block, "stream", None)
    return stream


def run_resident(block: Callable[..., Tensor], x: Tensor, shared: Sequence[Any], kept: Kept) -> Tensor:
    """As `run_block`, of a block whose weights are there."""

    def run(x: Tensor) -> Tensor:
        result: Tensor = block(x, *shared)
        return result

    job.leave_if_asked()
    x = when_gradient_passes(x, job.leave_if_asked)
    return recomputed(run, x, kept.offload, kept.tier) if kept.recompute and torch.is_grad_enabled() else run(x)
