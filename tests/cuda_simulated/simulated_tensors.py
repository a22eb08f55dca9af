"""What Python does with a tensor past the dispatcher, for tensors of the simulated GPU: numbers, arrays, and another's contents."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from simulated_device import on_gpu, simulation
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._pytree import tree_map


def tolist_with(original: Callable[[Tensor], Any]) -> Callable[[Tensor], Any]:
    def nested(tensor: Tensor, shape: tuple[int, ...]) -> Any:
        return simulation().read(tensor) if not shape else [nested(tensor, shape[1:]) for _ in range(shape[0])]

    def tolist(tensor: Tensor) -> Any:
        if not on_gpu(tensor):
            return original(tensor)
        simulation().waits("read")
        return nested(tensor, tuple(tensor.shape))

    return tolist


def numpy_with(original: Callable[..., Any]) -> Callable[..., Any]:
    def numpy(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
        if on_gpu(tensor):
            raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() to copy the tensor to host memory first.")
        return original(tensor, *args, **kwargs)

    return numpy


_DATA: Any = torch._C.TensorBase.data


def take_data(tensor: Tensor, new: Tensor) -> None:
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


def get_data(tensor: Tensor) -> Tensor:
    return tensor.detach() if isinstance(tensor, FakeTensor) else _DATA.__get__(tensor)


def save_with(original: Callable[..., None]) -> Callable[..., None]:
    """`torch.save`, which copies what is on the GPU."""

    def save(value: Any, *given: Any, **named: Any) -> None:
        original(tree_map(lambda one: one.cpu() if on_gpu(one) else one, value), *given, **named)

    return save


def apply_in_place(module: nn.Module, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
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
