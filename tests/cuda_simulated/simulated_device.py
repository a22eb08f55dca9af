"""The GPU that is not there: its streams and events, and what it was asked for."""

from __future__ import annotations

import os
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from simulated_order import Clock, Order
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.multiprocessing.reductions import StorageWeakRef

BACKEND = f"{os.sep}musubi_backend{os.sep}"
GPU = torch.device("cuda", 0)
_local = threading.local()


class Stream:
    """`torch.cuda.Stream`."""

    def __init__(self, device: object = None, priority: int = 0, name: str = "") -> None:
        self.name = name or f"stream {next(simulation().numbers)}"
        self.device = GPU

    def record_event(self, event: Event | None = None) -> Event:
        event = event or Event()
        event.record(self)
        return event

    def wait_event(self, event: Event) -> None:
        simulation().order.wait(self.name, event.clock)

    def wait_stream(self, other: Stream) -> None:
        self.wait_event(other.record_event())

    def synchronize(self) -> None:
        simulation().waits("stream", self.record_event().clock)


class Event:
    """`torch.cuda.Event`."""

    def __init__(self, *_: object, **__: object) -> None:
        self.clock: Clock = {}

    def record(self, stream: Stream | None = None) -> None:
        self.clock = simulation().order.record((stream or current_stream()).name)

    def wait(self, stream: Stream | None = None) -> None:
        (stream or current_stream()).wait_event(self)

    def synchronize(self) -> None:
        simulation().waits("event", self.clock)

    def query(self) -> bool:
        return True


def current_stream(device: object = None) -> Stream:
    stream: Stream = getattr(_local, "stream", None) or simulation().main
    return stream


@contextmanager
def use_stream(stream: Stream | None) -> Iterator[None]:
    before = getattr(_local, "stream", None)
    _local.stream = stream
    try:
        yield
    finally:
        _local.stream = before


class Simulation:
    """What happened on a simulated GPU. waited: (what, where in the backend) -> how often the host stood still for the device; in_steps:
    those in a training's steps."""

    def __init__(self) -> None:
        self.order = Order()
        self.main = Stream(name="main stream")
        self.numbers = iter(range(1, 10**9))
        self.waited: Counter[tuple[str, str]] = Counter()
        self.in_steps: Counter[tuple[str, str]] = Counter()
        self.kernels: Counter[str] = Counter()
        self.copied: Counter[str] = Counter()
        self.modes = FakeTensorMode(allow_non_fake_inputs=True)
        self.pinning_fails = False
        self._zero: StorageWeakRef | None = None
        self._all: dict[int, StorageWeakRef] = {}
        self._storages: dict[int, StorageWeakRef] = {}
        self._pinned: dict[int, StorageWeakRef] = {}
        self.one_at_a_time = threading.RLock()
        self._launches = 0
        self._ram_used = False

    def waits(self, what: str, clock: Clock | None = None) -> None:
        """The host stands still until the device has done what the current stream, or an event's clock, says."""
        with self.one_at_a_time:
            self.waited[what, place()] += 1
            if in_a_step():
                self.in_steps[what, place()] += 1
            self.order.synchronize(threading.current_thread().name, self.order.record(current_stream().name) if clock is None else clock)

    def pin(self, tensor: Tensor) -> None:
        if self.pinning_fails:
            raise RuntimeError("CUDA error: out of memory")
        storage = tensor.untyped_storage()
        self._pinned[storage._cdata] = StorageWeakRef(storage)

    def is_pinned(self, tensor: Tensor) -> bool:
        found = self._pinned.get(tensor.untyped_storage()._cdata)
        address = tensor.data_ptr()
        ours = any(start <= address and address + tensor.nbytes <= start + size for start, size in registered.items())
        return ours or (found is not None and not found.expired())

    def none_overflowed(self, found: Tensor) -> None:
        """What torch's gradient scaler reads of its gradients: no step is skipped."""
        self._zero = StorageWeakRef(found.untyped_storage())

    def holds(self, result: Tensor) -> None:
        """Whatever was asked of all numbers is so: they are finite."""
        storage = result.untyped_storage()
        self._all[storage._cdata] = StorageWeakRef(storage)

    def read(self, tensor: Tensor) -> bool | int | float:
        """A number of the device, made up."""
        if tensor.untyped_storage()._cdata in self._all:
            return True
        if self._zero is not None and self._zero.cdata == tensor.untyped_storage()._cdata:
            return 0.0
        if tensor.dtype == torch.bool:
            return False
        return 0.5 if tensor.dtype.is_floating_point else 1

    def launch(self, func: Any, reads: list[Tensor], writes: list[Tensor]) -> None:
        """The current stream is asked for a kernel."""
        with self.one_at_a_time:
            self._bury()
            stream, what = current_stream().name, f"{operation_name(func)} at {place()}"
            self.kernels[operation_name(func)] += 1
            keys = [[self._key(tensor, stream) for tensor in tensors] for tensors in (reads, writes)]
            self.order.launch(stream, *keys, what, threading.current_thread().name)

    def on_host(self, func: Any, reads: list[Tensor], writes: list[Tensor]) -> None:
        """The host uses memory that a copy may be using; other memory is of no interest."""
        with self.one_at_a_time:
            for tensors, writing in ((writes, True), (reads, False)):
                for tensor in tensors:
                    key = tensor.untyped_storage()._cdata
                    if key in self._storages and not self._storages[key].expired():
                        self.order.touch(threading.current_thread().name, key, writing, f"{func} on the host at {place()}")

    @property
    def has_shared_ram(self) -> bool:
        """Was any copy asked for that may still use system RAM?"""
        return self._ram_used

    def keep(self, tensor: Tensor) -> None:
        self.order.keep(self._key(tensor, current_stream().name))

    def _key(self, tensor: Tensor, stream: str) -> int:
        storage = tensor.untyped_storage()
        key: int = storage._cdata
        if key not in self._storages:
            self._storages[key] = StorageWeakRef(storage)
            self._ram_used |= not on_gpu(tensor)
            name = f"{tuple(tensor.shape)} {tensor.dtype} made at {place()}"
            self.order.allocate(key, name, stream if on_gpu(tensor) else None, threading.current_thread().name)
        return key

    def _bury(self) -> None:
        """See what nothing refers to any more: at once where several streams use it, now and then where one does. A weak reference keeps
        an address from being used again until then."""
        self._launches += 1
        shared = self._storages if self._launches % 500 == 0 else self.order.shared
        for key in [key for key in shared if self._storages[key].expired()]:
            del self._storages[key]
            self.order.free(key)


running: list[Simulation] = []
registered: dict[int, int] = {}
"""Pinned pages of the process, address -> size: what one simulation left behind is given back during another."""


class Driver:
    """`torch.cuda.cudart()`."""

    @staticmethod
    def cudaHostRegister(address: int, size: int, flags: int) -> int:
        """0, or CUDA's number for "out of memory". To be asked for whole pages that nobody has registered."""
        assert address % 4096 == 0 and size % 4096 == 0, "not whole pages"
        assert not any(start < address + size and address < start + other for start, other in registered.items()), "registered twice"
        if simulation().pinning_fails:
            return 2
        registered[address] = size
        return 0

    @staticmethod
    def cudaHostUnregister(address: int) -> int:
        del registered[address]
        return 0


def synchronize_device(device: object = None) -> None:
    if running:
        simulation().waits("device")


def simulation() -> Simulation:
    return running[-1]


def place() -> str:
    """Where in the backend we are."""
    frame = sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        if BACKEND in code.co_filename:
            return f"{code.co_filename.rpartition(BACKEND)[2].replace(os.sep, '/')}:{code.co_qualname}"
        frame = frame.f_back  # type: ignore[assignment]
    return "elsewhere"


def in_a_step() -> bool:
    """Is a training between two of its steps' beginnings, and neither saving nor sampling?"""
    frame, names = sys._getframe(1), set()
    while frame is not None:
        names.add(frame.f_code.co_qualname)
        frame = frame.f_back  # type: ignore[assignment]
    return "Loop._epoch" in names and not names & {"Loop._do", "Loop._end_of_epoch", "Leaving._leave"}


def on_gpu(value: object) -> bool:
    return isinstance(value, FakeTensor) and value.fake_device.type == "cuda"


@cache
def operation_name(func: Any) -> str:
    """As in "mm"."""
    name: str = func._schema.name
    return name.removeprefix("aten::")
