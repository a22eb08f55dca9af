"""Several batches through a transformer block by block: each block runs for all of them before the next one does, forward and backward, so
that weights that come and go are fetched once for all.

Autograd goes back through a whole pass before it begins with the next, so each batch has a graph of its own for every block. In every block
gradients add up in the order of the batches, as they do one batch after the other: all numbers are equal to the last bit.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from . import recompute
from .blocks import Checkpointed, Kept, Prepared, run_resident, stream_of
from .passing import beginning, ending
from .random_states import RandomStates


@dataclass(frozen=True)
class Pass:
    """One batch. prepare: what comes before the blocks; random: the states of the generators at its start; go_back: from the prediction to
    the loss, and back from it."""

    prepare: Callable[[], Prepared]
    random: RandomStates
    go_back: Callable[[Tensor], None]


def by_block(model: Checkpointed, passes: Sequence[Pass], gather: Callable[[], None]) -> None:
    """Forward and backward of all `passes`, which run the same blocks. gather: called when one of them has gone back through a block.

    The last block goes back at once, with one batch after the other, so that what it keeps is that of one.
    """
    batches = [_Batch(one) for one in passes]
    *blocks, last = batches[0].prepared.blocks
    recorded: list[list[recompute.Recorded]] = []
    for number, block in enumerate(blocks):
        kept = model.kept(number, len(blocks) + 1)
        with _there(block, backward=False):
            recorded.append([batch.forward(block, kept) for batch in batches])
    recompute.come_back([one for of_block in reversed(recorded) for one in of_block])
    recorded.clear()
    with _there(last, backward=True):
        for batch in batches:
            batch.turn(last, model.kept(len(blocks), len(blocks) + 1))
            gather()
    for block in reversed(blocks):
        with _there(block, backward=True):
            for batch in batches:
                batch.backward()
                gather()


@contextlib.contextmanager
def _there(block: nn.Module, *, backward: bool) -> Iterator[None]:
    """The block's weights are there."""
    stream = stream_of(block)
    if stream is not None:
        stream.bring(block, backward=backward)
    yield
    if stream is not None:
        stream.leave(block, backward=backward)


class _Batch:
    """One batch on its way."""

    def __init__(self, given: Pass) -> None:
        self.go_back, self.random = given.go_back, given.random
        self.random.restore()
        self.prepared = given.prepare()
        self.device = self.prepared.x.device
        self.random = RandomStates.now(self.device)
        self.x, self.trains = self.prepared.x, False
        self.prepared = self.prepared._replace(x=torch.empty(0))
        self.ends: list[Tensor | None] = []
        self.gradient: Tensor | None = None

    def forward(self, block: nn.Module, kept: Kept) -> recompute.Recorded:
        out = self._out(block, kept)
        self.trains = out.requires_grad
        self.ends.append(ending(out, self._give) if self.trains else None)
        self.x = out.detach()
        return recompute.latest() if kept.recompute else None

    def turn(self, block: nn.Module, kept: Kept) -> None:
        """Through the last block, to the loss and back to the block's input."""
        self.go_back(self.prepared.finish(self._out(block, kept)))

    def backward(self) -> None:
        """Back through the last block that it did not go back through yet."""
        end = self.ends.pop()
        if end is not None and self.gradient is not None:
            torch.autograd.backward((end,), (torch.empty_like(end),))

    def _out(self, block: nn.Module, kept: Kept) -> Tensor:
        x = beginning(self.x, self._take) if self.trains else self.x
        del self.x
        self.random.restore()
        out = run_resident(block, x, self.prepared.shared, kept)
        self.random = RandomStates.now(self.device)
        return out

    def _take(self, gradient: Tensor) -> None:
        self.gradient = gradient

    def _give(self) -> Tensor:
        gradient, self.gradient = self.gradient, None
        assert gradient is not None
        return gradient
