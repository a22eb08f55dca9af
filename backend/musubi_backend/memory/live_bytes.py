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
        result = func(*args, **kwargs)
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
