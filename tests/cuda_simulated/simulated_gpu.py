"""A GPU without a GPU: tensors on "cuda" have shape, dtype, device and memory, but no values; those on the CPU stay real.

Every operation on them is checked by PyTorch's own rules for shapes, dtypes and devices (FakeTensorMode); besides it is written down which
stream was asked for it, and what the host waited for (`simulated_order`). What comes back from the device is made up: 0.5, or 1.

For a process of its own: `simulated_driver` has to be there before torch is imported, and stays.
"""

from __future__ import annotations

import os
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import Any
from unittest.mock import patch

import torch
from simulated_order import Clock, Order
from torch import Tensor, nn
from torch._subclasses import fake_tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_map

BACKEND = f"{os.sep}musubi_backend{os.sep}"
GPU = torch.device("cuda", 0)
CAPABILITY, TOTAL, FREE = (8, 9), 24 << 30, 20 << 30
_aten = torch.ops.aten
_TO_HOST = (_aten._local_scalar_dense.default, _aten.is_nonzero.default, _aten.equal.default)
_PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "mv", "addmv", "dot", "linear", "convolution", "_scaled_dot_product_efficient_attention")
_SIZES_FROM_VALUES = ("nonzero", "masked_select", "unique", "_unique2")
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


_PLAIN_GENERATOR = torch.Generator


class Generator(torch.Generator):
    """`torch.Generator`, which may be one of the GPU."""

    place = torch.device("cpu")

    def __new__(cls, device: torch.device | str = "cpu") -> Generator:
        generator: Generator = super().__new__(cls, "cpu")
        generator.place = torch.device(device)
        return generator

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return self.place


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
        ours = any(start <= address and address + tensor.nbytes <= start + size for start, size in _registered.items())
        return ours or (found is not None and not found.expired())

    def launch(self, func: Any, reads: list[Tensor], writes: list[Tensor]) -> None:
        """The current stream is asked for a kernel."""
        with self.one_at_a_time:
            self._bury()
            stream, what = current_stream().name, f"{_name(func)} at {place()}"
            self.kernels[_name(func)] += 1
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


_simulation: list[Simulation] = []
_registered: dict[int, int] = {}
"""Pinned pages of the process, address -> size: what one simulation left behind is given back during another."""


class _Driver:
    """`torch.cuda.cudart()`."""

    @staticmethod
    def cudaHostRegister(address: int, size: int, flags: int) -> int:
        """0, or CUDA's number for "out of memory". To be asked for whole pages that nobody has registered."""
        assert address % 4096 == 0 and size % 4096 == 0, "not whole pages"
        assert not any(start < address + size and address < start + other for start, other in _registered.items()), "registered twice"
        if simulation().pinning_fails:
            return 2
        _registered[address] = size
        return 0

    @staticmethod
    def cudaHostUnregister(address: int) -> int:
        del _registered[address]
        return 0


def _synchronize(device: object = None) -> None:
    if _simulation:
        simulation().waits("device")


def simulation() -> Simulation:
    return _simulation[-1]


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
    return "Loop._epoch" in names and not names & {"Loop._do", "Loop._end_of_epoch", "Loop._leave"}


def on_gpu(value: object) -> bool:
    return isinstance(value, FakeTensor) and value.fake_device.type == "cuda"


class _Dispatch(TorchDispatchMode):
    """Sees every operation of a thread, and of the backward passes that it starts."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        pinned = kwargs.pop("pin_memory", None)
        device = kwargs.get("device")
        tensors = [*_tensors(args), *_tensors(list(kwargs.values()))]
        if func == _aten.is_pinned.default:
            return simulation().is_pinned(args[0])
        if not any(isinstance(one, FakeTensor) for one in tensors) and (device is None or torch.device(device).type != "cuda"):
            result = func(*args, **kwargs)
            if simulation().has_shared_ram:
                simulation().on_host(func, *_accesses(func, args, kwargs, ()))
            if pinned:
                simulation().pin(result)
            return result
        with simulation().one_at_a_time:  # FakeTensorMode knows of no other threads
            return _on_device(func, args, kwargs)


class _Functions(TorchFunctionMode):
    """Sees what Python asks of PyTorch, with the generators that it gives."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        generator = next((one for one in (*args, *kwargs.values()) if isinstance(one, Generator)), None)
        if generator is not None:
            first = next((one for one in args if isinstance(one, Tensor)), None)
            device = torch.device(kwargs.get("device") or (first.device if first is not None else "cpu"))
            if device.type != generator.place.type:
                raise RuntimeError(f"Expected a '{device.type}' device type for generator but found '{generator.place.type}'")
        return func(*args, **kwargs)


def _check_products(name: str, tensors: list[Tensor]) -> None:
    """CUDA multiplies matrices of one dtype; PyTorch's shape checks do not look."""
    dtypes = {one.dtype for one in tensors if one.dtype.is_floating_point}
    if name in _PRODUCTS and len(dtypes) > 1:
        raise RuntimeError(f"{name}: expected tensors of the same dtype, but got {' and '.join(sorted(map(str, dtypes)))}")


def _on_device(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    if func in _TO_HOST:
        simulation().waits("read")
        return _scalar(args[0]) if func == _aten._local_scalar_dense.default else bool(func == _aten.equal.default)
    name = _name(func)
    if name.startswith("prim::") or _facts(func)[1]:
        return _fake(func, args, kwargs)
    _check_products(name, [one for one in args if isinstance(one, Tensor)])
    if name in _SIZES_FROM_VALUES or (name == "index" and any(on_gpu(one) and one.dtype == torch.bool for one in _tensors(args[1:]))):
        simulation().waits(f"size of {name}")
    if name == "copy_" and not isinstance(args[0], FakeTensor):
        return _copy_to_host(func, args[0], args[1], bool(args[2] if len(args) > 2 else kwargs.get("non_blocking")))
    result = _fake(func, args, kwargs)
    if name == "_to_copy" and not on_gpu(result):
        return _copy_to_host(func, torch.empty_strided(result.shape, result.stride(), dtype=result.dtype), args[0], False)
    if name in ("_to_copy", "copy_") and on_gpu(args[0]) != on_gpu(args[1] if name == "copy_" else result):
        source = args[1] if name == "copy_" else args[0]
        _copied_to_device(func, result, source, bool(kwargs.get("non_blocking") or (name == "copy_" and len(args) > 2 and args[2])))
        return result
    reads, writes = _accesses(func, args, kwargs, result)
    if reads or writes:
        simulation().launch(func, reads, writes)
    return result


def _fake(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """PyTorch's own check of an operation, and a result without values. Tensors of the CPU take part as such."""
    mode = simulation().modes

    def enter(value: Any) -> Any:
        if isinstance(value, Tensor) and not isinstance(value, FakeTensor):
            with _disable_current_modes():
                twin = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")
            return FakeTensor(mode, twin, value.device)
        return None if isinstance(value, _PLAIN_GENERATOR) else value

    entered, named = tree_map(enter, (args, kwargs))
    with mode:
        return func(*entered, **named)


def _accesses(func: Any, args: Any, kwargs: dict[str, Any], result: Any) -> tuple[list[Tensor], list[Tensor]]:
    """What an operation reads and writes; nothing of views."""
    written, is_view, is_empty = _facts(func)
    if is_view:
        return [], []
    reads: list[Tensor] = []
    writes: list[Tensor] = list(_tensors(result))
    for number, value in enumerate(args):
        (writes if number in written else reads).extend(_tensors(value))
    for name, value in kwargs.items():
        (writes if name in written else reads).extend(_tensors(value))
    return [] if is_empty else reads, writes


@cache
def _facts(func: Any) -> tuple[frozenset[int | str], bool, bool]:
    """Which arguments an operation writes, by place and name; whether its result is a view; whether it only makes memory."""
    schema = func._schema
    names = [(number, one.name) for number, one in enumerate(schema.arguments) if one.alias_info is not None and one.alias_info.is_write]
    is_view = not names and any(one.alias_info is not None for one in schema.returns)
    return frozenset(key for pair in names for key in pair), is_view, "empty" in schema.name


@cache
def _name(func: Any) -> str:
    name: str = func._schema.name
    return name.removeprefix("aten::")


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for one in value:
            yield from _tensors(one)


def _copy_to_host(func: Any, host: Tensor, source: Tensor, non_blocking: bool) -> Tensor:
    """The values are made up."""
    with _disable_current_modes():
        host.fill_(0.5 if host.dtype.is_floating_point else 1)
    asynchronous = non_blocking and simulation().is_pinned(host)
    simulation().copied["to host"] += source.nbytes
    simulation().launch(func, [source], [host] if asynchronous else [])
    if not asynchronous:
        simulation().waits("copy to host")
    return host


def _copied_to_device(func: Any, target: Tensor, source: Tensor, non_blocking: bool) -> None:
    pinned = simulation().is_pinned(source) if not isinstance(source, FakeTensor) else False
    simulation().copied["to device, pinned" if pinned else "to device, pageable"] += source.nbytes
    simulation().launch(func, [source] if pinned and non_blocking else [], [target])
    if not non_blocking:
        simulation().waits("copy to device")


def _scalar(tensor: Tensor) -> bool | int | float:
    if tensor.dtype == torch.bool:
        return False
    return 0.5 if tensor.dtype.is_floating_point else 1


def _tolist(original: Callable[[Tensor], Any]) -> Callable[[Tensor], Any]:
    def nested(tensor: Tensor, shape: tuple[int, ...]) -> Any:
        return _scalar(tensor) if not shape else [nested(tensor, shape[1:]) for _ in range(shape[0])]

    def tolist(tensor: Tensor) -> Any:
        if not on_gpu(tensor):
            return original(tensor)
        simulation().waits("read")
        return nested(tensor, tuple(tensor.shape))

    return tolist


def _numpy(original: Callable[..., Any]) -> Callable[..., Any]:
    def numpy(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
        if on_gpu(tensor):
            raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() to copy the tensor to host memory first.")
        return original(tensor, *args, **kwargs)

    return numpy


def _take_data(tensor: Tensor, new: Tensor) -> None:
    """`tensor.data = new`, also from one device to the other: the same object with other contents."""
    get, put = _DATA.__get__, _DATA.__set__
    if not isinstance(tensor, FakeTensor) and not isinstance(new, FakeTensor):
        put(tensor, new)
        return
    alias: Any = get(new) if not isinstance(new, FakeTensor) else new.detach()
    if isinstance(tensor, nn.Parameter) and not isinstance(alias, FakeTensor):
        alias = nn.Parameter(alias, tensor.requires_grad)
    else:
        alias.requires_grad_(tensor.requires_grad)
        if isinstance(tensor, nn.Parameter):
            alias._is_param = True
    one: Any = tensor
    one.__class__, alias.__class__ = alias.__class__, one.__class__
    one.__dict__, alias.__dict__ = alias.__dict__, one.__dict__
    torch._C._swap_tensor_impl(one, alias)


_DATA: Any = torch._C.TensorBase.data


def _get_data(tensor: Tensor) -> Tensor:
    return tensor.detach() if isinstance(tensor, FakeTensor) else _DATA.__get__(tensor)


def _apply(module: nn.Module, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
    """`nn.Module._apply` as it is from CPU to GPU: parameters stay the same objects."""
    if recurse:
        for child in module.children():
            child._apply(fn)
    for parameter in module._parameters.values():
        if parameter is not None:
            with torch.no_grad():
                parameter.data = fn(parameter)
    for name, buffer in module._buffers.items():
        if buffer is not None:
            module._buffers[name] = fn(buffer)
    return module


def _in_mode(run: Callable[[threading.Thread], None]) -> Callable[[threading.Thread], None]:
    def start(thread: threading.Thread) -> None:
        with _Dispatch():
            run(thread)

    return start


@contextmanager
def simulated_gpu() -> Iterator[Simulation]:
    """PyTorch finds a GPU of 24 GB."""
    made = Simulation()
    _simulation.append(made)
    nothing, cuda = (lambda *_, **__: None), torch.cuda
    answers: dict[str, Any] = {
        "is_available": lambda: True, "device_count": lambda: 1, "current_device": lambda: 0, "is_initialized": lambda: True,
        "_lazy_init": nothing, "init": nothing, "empty_cache": nothing, "set_device": nothing, "manual_seed": nothing,
        "manual_seed_all": nothing, "get_device_capability": lambda _=None: CAPABILITY, "get_device_name": lambda _=None: "Simulated GPU",
        "mem_get_info": lambda _=None: (FREE, TOTAL),
        "get_rng_state": lambda _=None: torch.zeros(16, dtype=torch.uint8), "set_rng_state": nothing,
        "is_bf16_supported": lambda *_, **__: True, "Stream": Stream, "Event": Event, "current_stream": current_stream,
        "stream": use_stream, "max_memory_allocated": lambda _=None: 0, "reset_peak_memory_stats": nothing,
    }  # fmt: skip
    lifts_cpu = torch._C._only_lift_cpu_tensors()
    cuda.cudart, cuda.synchronize = (lambda: _Driver), _synchronize  # these stay: pinned memory may outlive the simulation
    with ExitStack() as undo:
        for name, answer in answers.items():
            undo.enter_context(patch.object(cuda, name, answer))
        undo.enter_context(patch.object(torch, "Generator", Generator))
        undo.enter_context(patch.object(fake_tensor, "init_gpu_context", nothing))
        undo.enter_context(patch.object(FakeTensorMode, "avoid_device_init", property(lambda _: True)))
        undo.enter_context(patch.object(nn.Module, "_apply", _apply))
        undo.enter_context(patch.object(threading.Thread, "run", _in_mode(threading.Thread.run)))
        undo.enter_context(patch.object(Tensor, "record_stream", lambda tensor, _: simulation().keep(tensor)))
        for name, replaced in (
            ("tolist", _tolist(Tensor.tolist)),
            ("numpy", _numpy(Tensor.numpy)),
            ("data", property(_get_data, _take_data)),
        ):
            setattr(Tensor, name, replaced)
            undo.callback(delattr, Tensor, name)
        torch._C._set_only_lift_cpu_tensors(True)
        undo.callback(torch._C._set_only_lift_cpu_tensors, lifts_cpu)
        undo.enter_context(_Functions())
        undo.enter_context(_Dispatch())
        undo.callback(_simulation.pop)
        yield made
