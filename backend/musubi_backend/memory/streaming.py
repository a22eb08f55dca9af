"""Block swap: blocks of a frozen transformer are offloaded to system RAM and copied to the device when their turn comes.

Because the weights never change, they are only ever copied to the device: a block's matrices lie behind each other in system RAM and
go as one piece into one of a few equal buffers, while other blocks compute. The offloaded blocks are spread evenly over all, so that
every transfer has computation to hide behind. Norms, biases and LoRAs are small and stay on the device.

What comes next is a guess (the same direction continues); a wrong guess costs a transfer that is waited for, never a wrong weight.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..layers.linear import Linear
from ..layers.passing import when_gradient_passes
from ..layers.pinned import Pinned

_ALIGNMENT = 256  # bytes; more than any kernel asks of a matrix
_MATRICES = ("weight", "scale_weight")
FORWARD, BACKWARD = 1, -1


def swapped_blocks(count: int, swapped: int, ring: int) -> list[int]:
    """Which of `count` blocks are offloaded to system RAM so that at most max(count - swapped, ring) are on the device at a time."""
    if swapped <= 0:
        return []
    waiting = min(count, swapped + ring)
    return [(2 * index + 1) * count // (2 * waiting) for index in range(waiting)]


class BlockStream:
    """Runs some of a model's blocks through `ring` buffers on `device`. `layers.blocks.run_block` calls `before` and `after`."""

    def __init__(self, blocks: Sequence[nn.Module], device: torch.device, ring: int = 2, pinned: bool = False) -> None:
        """blocks: the offloaded ones, in the order they run, with their matrices in system RAM. pinned: pin that memory, which
        saves a copy on the way to a CUDA device; where the driver refuses, it is as if not asked for."""
        pinned = pinned and device.type == "cuda"
        self.packed = [_Packed(block, device if pinned else None) for block in blocks]
        if not all(packed.pinned for packed in self.packed):
            pinned = False
            for packed in self.packed:
                packed.home = None  # what the driver did pin is left to the staging buffers
        largest = max(len(packed.memory) for packed in self.packed)
        self.buffers = [torch.empty(largest, dtype=torch.uint8, device=device) for _ in range(min(ring, len(blocks)))]
        self.holds: list[int | None] = [None] * len(self.buffers)
        self.arrivals: list[Future[Any] | None] = [None] * len(self.buffers)
        self.transfers = _Transfers(device, largest, pinned)
        self.transfers.keep(self.buffers)
        self.numbers = {id(block): number for number, block in enumerate(blocks)}
        for block in blocks:
            block.stream = self  # type: ignore[assignment]
            for linear in _linears(block):
                linear.swap_to(device)
        for number in range(len(self.buffers)):
            self._fetch(number, number)

    def before(self, block: nn.Module, x: Tensor) -> Tensor:
        """Have the block's matrices on the device. Returns its input, through which backward will say that it is done with them."""
        number = self.numbers[id(block)]
        self._need(number, FORWARD)
        return when_gradient_passes(x, lambda: self._left(number, BACKWARD, around=False))

    def after(self, block: nn.Module, out: Tensor) -> Tensor:
        """Start fetching what will be needed. Returns the block's output, through which backward will ask for its matrices."""
        number = self.numbers[id(block)]
        coming_back = torch.is_grad_enabled() and out.requires_grad
        self._left(number, FORWARD, around=not coming_back)
        return when_gradient_passes(out, lambda: self._need(number, BACKWARD))

    def bring(self, block: nn.Module, *, backward: bool) -> None:
        """Have the block's matrices on the device, for what runs it several times in this direction."""
        self._need(self.numbers[id(block)], BACKWARD if backward else FORWARD)

    def leave(self, block: nn.Module, *, backward: bool) -> None:
        """It has run; after forward it comes back."""
        self._left(self.numbers[id(block)], BACKWARD if backward else FORWARD, around=False)

    def _need(self, number: int, direction: int) -> None:
        if number not in self.holds:  # a wrong guess, or a pass that begins elsewhere
            count = len(self.packed)
            # longest not needed if things continue in this direction: what was just passed
            distances = [(direction * (held - number)) % count if held is not None else count for held in self.holds]
            self._fetch(number, distances.index(max(distances)))
        buffer = self.holds.index(number)
        arrival = self.arrivals[buffer]
        if arrival is not None:
            self.transfers.wait(arrival)
            self.arrivals[buffer] = None
            self.packed[number].use(self.buffers[buffer])

    def _left(self, number: int, direction: int, around: bool) -> None:
        """The block is done with; its buffer goes to the one that is as many further as there are buffers. around: after the last block
        the first comes again; otherwise the last ones are next on the way back and stay."""
        following = number + direction * len(self.buffers)
        if around:
            following %= len(self.packed)
        if number in self.holds and following not in self.holds and 0 <= following < len(self.packed):
            self._fetch(following, self.holds.index(number))

    def _fetch(self, number: int, buffer: int) -> None:
        held = self.holds[buffer]
        if held is not None:
            self.packed[held].use(self.packed[held].memory)
        self.holds[buffer] = number
        self.arrivals[buffer] = self.transfers.start(self.packed[number].memory, self.buffers[buffer])


class _Packed:
    """The matrices of one block, behind each other in system RAM."""

    def __init__(self, block: nn.Module, pinned: torch.device | None) -> None:
        """pinned: the device to pin the memory for."""
        self.places: list[tuple[Tensor, int]] = []
        size = 0
        for linear in _linears(block):
            for name in _MATRICES:
                matrix: Tensor | None = getattr(linear, name, None)
                if matrix is not None:
                    self.places.append((matrix, size))
                    size += -(-matrix.nbytes // _ALIGNMENT) * _ALIGNMENT
        self.home = None if pinned is None else Pinned(size, pinned)
        self.pinned = self.home is not None and self.home.pinned
        self.memory = torch.empty(size, dtype=torch.uint8) if self.home is None else self.home.memory
        for matrix, view in self._views(self.memory):
            view.copy_(matrix.detach())
            matrix.data = view

    def use(self, memory: Tensor) -> None:
        """Let the layers see their matrices in `memory`, which holds a copy of ours."""
        for matrix, view in self._views(memory):
            matrix.data = view

    def _views(self, memory: Tensor) -> list[tuple[Tensor, Tensor]]:
        return [(matrix, memory[start : start + matrix.nbytes].view(matrix.dtype).view(matrix.shape)) for matrix, start in self.places]


class _Transfers:
    """Copies to the device, one after the other in a thread. On CUDA they run in a stream of their own; without pinned memory
    they pass through two pinned buffers, ordinary ones where the driver pins nothing."""

    def __init__(self, device: torch.device, largest: int, pinned: bool) -> None:
        self.device = device
        self.worker = ThreadPoolExecutor(1, thread_name_prefix="block transfers")
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        staged = self.stream is not None and not pinned
        self.staging = [_Staging(Pinned(largest, device)) for _ in range(2)] if staged else []

    def keep(self, buffers: Sequence[Tensor]) -> None:
        """Where the model is dropped while a block is on its way, nothing else gets the buffer's memory before the copy is done."""
        if self.stream is not None:
            for buffer in buffers:
                buffer.record_stream(self.stream)

    def start(self, memory: Tensor, buffer: Tensor) -> Future[Any]:
        """Begin once what was asked of the device so far is done, as it may use `buffer`."""
        done = torch.cuda.current_stream(self.device).record_event() if self.stream is not None else None
        return self.worker.submit(self._copy, memory, buffer[: len(memory)], done)

    def wait(self, arrival: Future[Any]) -> None:
        """What is asked of the device from now on comes after this transfer."""
        event = arrival.result()
        if event is not None:
            torch.cuda.current_stream(self.device).wait_event(event)

    def _copy(self, memory: Tensor, buffer: Tensor, done: Any) -> Any:
        if self.stream is None:
            buffer.copy_(memory)
            return None
        staging = self.staging.pop(0) if self.staging else None
        source = memory if staging is None else staging.filled(memory)
        with torch.cuda.stream(self.stream):
            self.stream.wait_event(done)
            buffer.copy_(source, non_blocking=True)
            event = self.stream.record_event()
        if staging is not None:
            staging.left = event
            self.staging.append(staging)
        return event


@dataclass
class _Staging:
    """Pinned memory on the way to the device. left: the event after which it may be filled again."""

    home: Pinned
    left: Any = None

    def filled(self, source: Tensor) -> Tensor:
        if self.left is not None:
            self.left.synchronize()
        return self.home.memory[: len(source)].copy_(source)


def _linears(block: nn.Module) -> list[Linear]:
    return [module for module in block.modules() if isinstance(module, Linear)]
