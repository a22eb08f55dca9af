"""A step of a model with few blocks says what one with many takes: equal blocks keep and make the same.

Of every list of blocks three run: the first, whose input may need no gradient; one of those in the middle, which stands for all that are
left out; and the last, which is never recomputed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ..layers.linear import Linear
from ..layers.passing import when_gradient_passes
from .live_bytes import LiveBytes

KEPT_BLOCKS = 3
_MIDDLE = 1


@dataclass
class _Segment:
    """From one border of a block to the next. list, block: -1 before the first block. peak: bytes on the device."""

    backward: bool
    list: int
    block: int
    peak: int = 0
    operations: int = 0


@dataclass(frozen=True)
class Measured:
    """Of a whole step on the device. kept: bytes that forward left for backward, of them by_blocks such as every block leaves; last: those
    of the last block, which is at work when backward begins; peak: at the worst moment, with the gradients so far; operations: of matrix
    products and attention."""

    kept: int
    peak: int
    operations: int
    by_blocks: int
    last: int = 0


class FewBlocks:
    """Cuts a model's lists of blocks short and watches those that stay (as `layers.blocks.Stream`), while `count` counts; until `result`.

    offloaded: do recomputed blocks leave their input in system RAM?
    """

    def __init__(self, lists: Sequence[nn.ModuleList], count: LiveBytes, offloaded: bool = False) -> None:
        self.count, self.offloaded = count, offloaded
        self.whole = [(blocks, list(blocks)) for blocks in lists]
        self.left_out = [max(0, len(blocks) - KEPT_BLOCKS) for blocks in lists]
        self.gradients = [_gradients(blocks[min(_MIDDLE, len(blocks) - 1)]) for blocks in lists]
        self.kept_by_block = [0] * len(lists)
        self.places: dict[int, tuple[int, int]] = {}
        for number, blocks in enumerate(lists):
            del blocks[_MIDDLE + 1 : len(blocks) - (KEPT_BLOCKS - _MIDDLE - 1)]
            for index, block in enumerate(blocks):
                self.places[id(block)] = number, index
                block.stream = self  # type: ignore[assignment]
        self.last = len(lists) - 1, len(lists[-1]) - 1
        self.segments: list[_Segment] = []
        self.away = self.ahead = 0
        self.waiting = [0] * len(lists)
        self._before = self.of_last = 0
        self._open(False, -1, -1)

    def before(self, block: nn.Module, x: Tensor) -> Tensor:
        number, index = self.places[id(block)]
        self._open(False, number, index)
        self._before = self.count.live
        return when_gradient_passes(x, lambda: self._open(True, number, index))

    def after(self, block: nn.Module, x: Tensor) -> Tensor:
        number, index = self.places[id(block)]
        self._open(False, number, index)
        waits = x.nbytes if self.offloaded and (number, index) != self.last else 0
        self.away += waits
        if index == _MIDDLE:
            given_up = 0 if x.requires_grad and not waits else x.nbytes  # its input goes with its caller's next one
            self.waiting[number] = waits
            self.kept_by_block[number] = self.count.live - self._before - waits - given_up
        if (number, index) == self.last:
            self.of_last = self.count.live - self._before

        def coming_back() -> None:
            self._open(True, number, index)
            self.away -= waits
            self.ahead = min(waits, self.away)  # the one before it is asked for as this one runs again

        return when_gradient_passes(x, coming_back)

    @property
    def whole_away(self) -> int:
        """Bytes of inputs in system RAM when forward has ended, of all blocks."""
        return self.away + sum(one * left for one, left in zip(self.waiting, self.left_out, strict=True))

    def result(self, kept: int) -> Measured:
        """Of all blocks. kept: bytes that were counted when forward had ended."""
        self._close()
        for blocks, whole in self.whole:
            for block in blocks:
                del block.stream
            del blocks[:]
            blocks.extend(whole)
        extra = [kept_one * left for kept_one, left in zip(self.kept_by_block, self.left_out, strict=True)]
        peak = max(segment.peak + self._of_left_out(segment, extra) for segment in self.segments)
        times = [1 + (self.left_out[one.list] if one.block == _MIDDLE else 0) for one in self.segments]
        operations = sum(one.operations * factor for one, factor in zip(self.segments, times, strict=True))
        by_blocks = sum(kept_one * len(whole) for kept_one, (_, whole) in zip(self.kept_by_block, self.whole, strict=True))
        return Measured(kept + sum(extra), peak, operations, by_blocks, self.of_last)

    def _of_left_out(self, segment: _Segment, kept: Sequence[int]) -> int:
        """What the blocks that are left out would hold meanwhile: what forward kept of those before, gradients of those behind."""
        if segment.list < 0:
            return 0
        before = sum(kept[: segment.list]) + (kept[segment.list] if segment.block >= _MIDDLE else 0)
        if not segment.backward:
            return before
        gradients = [each * left for each, left in zip(self.gradients, self.left_out, strict=True)]
        behind = sum(gradients[segment.list + 1 :])
        if segment.block == _MIDDLE:  # the first of them that comes back, or the last
            return behind + sum(kept[: segment.list]) + max(kept[segment.list], gradients[segment.list])
        return behind + before + (gradients[segment.list] if segment.block < _MIDDLE else 0)

    def _open(self, backward: bool, number: int, index: int) -> None:
        self._close()
        self.segments.append(_Segment(backward, number, index))
        self.count.mark()

    def _close(self) -> None:
        if self.segments:
            segment = self.segments[-1]
            segment.peak = self.count.peak - self.away + self.ahead
            segment.operations = self.count.operations


def _gradients(block: nn.Module) -> int:
    """Bytes of the gradients of the LoRA modules in a block."""
    additions: list[Any] = [module.addition for module in block.modules() if isinstance(module, Linear) and module.addition is not None]
    return sum(one.nbytes for addition in additions for one in getattr(addition, "working", None) or addition.parameters())
