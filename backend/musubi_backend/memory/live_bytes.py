"""Counting what lives while a piece of a step runs: bytes of tensors, and operations of matrix products.

Works on any device. On "meta" nothing is computed or held, so that steps of any size can be counted. A kernel's own scratch memory is
not a tensor: of the one kernel where it counts, it is added (`_SCRATCH`).
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

_aten = torch.ops.aten


def _gradient_of_queries(grad: Tensor, q: Tensor, *rest: Any, **named: Any) -> int:
    """Flash attention's backward adds it up in float32 (arXiv 2307.08691, section 3.1.2)."""
    return 4 * q.numel()


_SCRATCH: Mapping[Any, Callable[..., int]] = {_aten._scaled_dot_product_flash_attention_backward.default: _gradient_of_queries}
_OPERATIONS: Mapping[Any, Callable[..., int]] = {
    **flop_registry,
    _aten.addmm_: flop_registry[_aten.addmm],
    _aten._int_mm: flop_registry[_aten.mm],
}
"""PyTorch's counts, which leave out products in place and those of int8."""


class LiveBytes(TorchDispatchMode):
    """While it is entered: `live` bytes of the tensors made on `device`, the `peak` since `mark`, and `operations` of their making.

    Tensors that were there before are not counted, nor views of them (`known`: their storages).
    """

    def __init__(self, device: torch.device, known: Iterable[Tensor] = ()) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._type = device.type
        self.live = self.peak = self.operations = 0
        self._known = [tensor.untyped_storage() for tensor in known]  # held, as their addresses would be used again
        self._alive: dict[int, weakref.ref[Any] | None] = {storage._cdata: None for storage in self._known}

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """PyTorch would load its compiler (a second) to keep it from looking in here, and ask it at every operation."""
        return False

    def mark(self) -> None:
        """From now on `peak` and `operations` are those of what comes."""
        self.peak, self.operations = self.live, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = _made(func, args, kwargs) if self._type == "meta" else func(*args, **kwargs)
        for one in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(one, Tensor) and one.device.type == self._type:
                self._count(one)
        scratch = _SCRATCH.get(func)
        if scratch is not None:
            self.peak = max(self.peak, self.live + scratch(*args, **kwargs))
        operations = _OPERATIONS.get(func._overloadpacket)
        if operations is not None:
            self.operations += operations(*args, **kwargs, out_val=result)
        return result

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._alive:
            return
        size = storage.nbytes()

        def gone(_: Any) -> None:
            del self._alive[key]
            self.live -= size

        self._alive[key] = weakref.ref(storage, gone)
        self.live += size
        self.peak = max(self.peak, self.live)


_Spec = tuple[torch.Size, tuple[int, ...], torch.dtype]
_RESULTS: dict[Any, list[_Spec | int | None] | None] = {}
"""What operations on "meta" make, by what they are given: PyTorch works that out in Python, and a step has few different ones. None: what
has to be asked for each time."""
_ITSELF: list[_Spec | int | None] = []
"""The first input, which was changed in place."""


class _Elsewhere(Exception):
    """An operation has an input on another device, or one that is no value: its result may depend on the contents."""


def _made(func: Any, args: Any, kwargs: Any) -> Any:
    """func(*args, **kwargs), of which equal ones are worked out once."""
    try:
        key = func, _described(args), _described(tuple(kwargs.items()))
    except _Elsewhere:
        return func(*args, **kwargs)
    known = _RESULTS.get(key)
    if known is None:
        result = func(*args, **kwargs)
        if key not in _RESULTS:
            _RESULTS[key] = _specs(func, args, kwargs, result, key[1])
        return result
    if known is _ITSELF:
        return args[0]
    made = [torch.empty_strided(*one[:2], dtype=one[2], device="meta") if isinstance(one, tuple) else one for one in known]
    return made[0] if len(func._schema.returns) == 1 else tuple(made)


def _described(value: Any) -> Any:
    """A value that is equal where the operation is the same."""
    if isinstance(value, Tensor):
        if not value.is_meta:
            raise _Elsewhere
        return value.shape, value.stride(), value.dtype
    if isinstance(value, (tuple, list)):
        return tuple(map(_described, value))
    if value is None or isinstance(value, (bool, int, float, str, torch.dtype, torch.device, torch.layout, torch.memory_format)):
        return type(value), value
    raise _Elsewhere


def _specs(func: Any, args: Any, kwargs: Any, result: Any, given: Any) -> list[_Spec | int | None] | None:
    """What to make another time; None for views and what is made elsewhere. given: the arguments as they were."""
    schema = func._schema
    if args and result is args[0]:
        others = any(one.alias_info is not None and one.alias_info.is_write for one in schema.arguments[1:])
        same = _described(result) == given[0] and schema.name != "aten::set_"
        return _ITSELF if same and not others and schema.name.endswith("_") else None
    if any(one.alias_info is not None for one in (*schema.arguments, *schema.returns)):
        return None
    several = list(result) if isinstance(result, (tuple, list)) else [result]
    inputs = {one.untyped_storage()._cdata for one in _tensors((args, tuple(kwargs.values())))}
    if len(several) != len(schema.returns) or not all(one is None or isinstance(one, int) or _new(one, inputs) for one in several):
        return None
    return [(one.shape, one.stride(), one.dtype) if isinstance(one, Tensor) else one for one in several]


def _new(one: Any, inputs: set[int]) -> bool:
    return isinstance(one, Tensor) and one.is_meta and not one.storage_offset() and one.untyped_storage()._cdata not in inputs


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    return [one for part in value for one in _tensors(part)] if isinstance(value, (tuple, list)) else []
