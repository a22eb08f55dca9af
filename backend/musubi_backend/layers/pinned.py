"""Pinned system RAM, from which a GPU copies without the CPU's help and while it computes.

PyTorch's own (`pin_memory=True`) is rounded up to a power of two, which makes 43 GB of the 28 GB of a model's blocks. Here ordinary memory
is registered with the driver (`cudaHostRegister`), to the page. The driver may refuse: limits of the system (`ulimit -l`, Windows' share of
the RAM) do not concern ordinary memory.
"""

from __future__ import annotations

import contextlib
import logging
import mmap
import weakref
from functools import lru_cache

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

_PAGE = mmap.PAGESIZE


class Pinned:
    """Pages of system RAM, to be copied from and to a CUDA device. memory: uint8 [size]. pinned: whether the driver took them; until this
    object is gone."""

    def __init__(self, size: int, device: torch.device) -> None:
        pages = torch.empty(size + 2 * _PAGE, dtype=torch.uint8)
        before = -pages.data_ptr() % _PAGE  # two of these must not share a page
        whole = -(-size // _PAGE) * _PAGE
        self.memory = pages[before : before + size]
        self.pinned = size > 0 and _register(pages.data_ptr() + before, whole, device)
        if self.pinned:
            weakref.finalize(
                self, _unregister, pages.data_ptr() + before, pages, device
            ).atexit = False  # the process' end frees everything


class Pool:
    """Pinned memory for activations, used again from step to step: a step needs as much as the one before it."""

    def __init__(self) -> None:
        self.free: list[Pinned] = []

    def take(self, x: Tensor) -> tuple[Tensor, Pinned]:
        """(an empty tensor like x, strides too, in pinned memory; what `give_back` is to get). Where the driver refuses it is ordinary
        memory, whose copies the host waits for."""
        fitting = [one for one in self.free if len(one.memory) >= x.nbytes]
        if fitting:
            chosen = min(fitting, key=lambda one: len(one.memory))
            self.free.remove(chosen)
        else:
            if self.free:  # too small ones make room
                self.free.remove(min(self.free, key=lambda one: len(one.memory)))
            chosen = Pinned(x.nbytes, x.device)
        strides = torch.empty_like(x, device="meta").stride()  # x's own, unless it has gaps or overlaps
        return chosen.memory[: x.nbytes].view(x.dtype).as_strided(x.shape, strides), chosen

    def give_back(self, memory: Pinned) -> None:
        """What is asked of the device from now on may overwrite it: on the stream that read it."""
        self.free.append(memory)

    def empty(self) -> None:
        """Nothing is kept for a next step."""
        self.free.clear()


def _register(address: int, size: int, device: torch.device) -> bool:
    result = torch.cuda.cudart().cudaHostRegister(address, size, 0)
    if int(result) == 0:
        return True
    _say_refused(int(result))
    with contextlib.suppress(RuntimeError):  # PyTorch asks for the last error after each kernel, and would find this one
        torch.ones(1, device=device)
    return False


def _unregister(address: int, pages: Tensor, device: torch.device) -> None:
    """pages: kept until now, so that nothing else is at the address. Garbage is collected in any thread, whose current device is any."""
    torch.cuda.synchronize(device)  # a copy may still be reading
    torch.cuda.cudart().cudaHostUnregister(address)


@lru_cache(maxsize=1)
def _say_refused(number: int) -> None:
    logger.warning(
        "the driver pins no more system RAM (CUDA error %d): copies to and from the GPU take longer. On Linux `ulimit -l` says how "
        "much may be pinned; Windows allows half of the RAM", number,
    )  # fmt: skip
