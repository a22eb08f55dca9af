"""Every operation on the simulated GPU: checked by PyTorch's own rules, told to the device, and given a result without values."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import torch
from simulated_device import on_gpu, operation_name, simulation
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_map

_aten = torch.ops.aten
_TO_HOST = (_aten._local_scalar_dense.default, _aten.is_nonzero.default, _aten.equal.default)
_PRODUCTS = (
    *("mm", "addmm", "addmm_", "bmm", "baddbmm", "mv", "addmv", "dot", "linear", "convolution"),
    "_scaled_dot_product_efficient_attention",
)
_EIGHT_BITS = ("_int_mm", "_scaled_mm")
_LOOKS_FOR_OVERFLOW = "_amp_foreach_non_finite_check_and_unscale_"
_SIZES_FROM_VALUES = ("nonzero", "masked_select", "unique", "_unique2")
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


class Dispatch(TorchDispatchMode):
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


class Functions(TorchFunctionMode):
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
    """CUDA multiplies matrices of one dtype, and 8-bit ones by rows and columns that each lie in one piece (CUDA 13 has no other kernels),
    int8 from 17 rows on and of whole groups of 8; PyTorch's shape checks do not look."""
    if name == "_int_mm" and (tensors[0].shape[0] <= 16 or any(size % 8 for size in tensors[1].shape)):
        raise RuntimeError("self.size(0) needs to be greater than 16, and the other sizes to be multiples of 8")
    if name in _EIGHT_BITS and not (tensors[0].stride(-1) == 1 and tensors[1].stride(0) == 1):
        raise RuntimeError(f"CUDA error: CUBLAS_STATUS_NOT_SUPPORTED when calling cublasLtMatmul with the layout of {name}")
    dtypes = {one.dtype for one in tensors if one.dtype.is_floating_point}
    if name in _PRODUCTS and len(dtypes) > 1:
        raise RuntimeError(f"{name}: expected tensors of the same dtype, but got {' and '.join(sorted(map(str, dtypes)))}")


def _on_device(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    if func in _TO_HOST:
        simulation().waits("read")
        read = simulation().read(args[0])
        return read if func == _aten._local_scalar_dense.default else func == _aten.equal.default or read is True
    name = operation_name(func)
    if name.startswith("prim::") or _facts(func)[1]:
        return _fake(func, args, kwargs)
    _check_products(name, [one for one in args if isinstance(one, Tensor)])
    if name in _SIZES_FROM_VALUES or (name == "index" and any(on_gpu(one) and one.dtype == torch.bool for one in _tensors(args[1:]))):
        simulation().waits(f"size of {name}")
    if name == "copy_" and not isinstance(args[0], FakeTensor):
        return _copy_to_host(func, args[0], args[1], bool(args[2] if len(args) > 2 else kwargs.get("non_blocking")))
    if name == _LOOKS_FOR_OVERFLOW:
        simulation().none_overflowed(args[1])
    result = _fake(func, args, kwargs)
    if name == "_to_copy" and not on_gpu(result):
        host = torch.empty_strided(result.shape, result.stride(), dtype=result.dtype)
        if non_blocking := bool(kwargs.get("non_blocking")):
            simulation().pin(host)  # so does PyTorch, and comes back before the copy is done
        return _copy_to_host(func, host, args[0], non_blocking)
    if name in ("_to_copy", "copy_") and on_gpu(args[0]) != on_gpu(args[1] if name == "copy_" else result):
        source = args[1] if name == "copy_" else args[0]
        _copied_to_device(func, result, source, bool(kwargs.get("non_blocking") or (name == "copy_" and len(args) > 2 and args[2])))
        return result
    if name == "all":
        simulation().holds(result)
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
