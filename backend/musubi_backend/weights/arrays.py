"""Tensors of safetensors files as numpy arrays, for tools that must not pay a second and 200 MB for importing torch.

numpy has no bfloat16 and no fp8: such arrays hold the bits (uint16, uint8), and `to_float32` and `from_float32` convert.
Rounding is to nearest, ties to even, as torch does it.
"""

from __future__ import annotations

import threading
from math import prod
from pathlib import Path
from types import TracebackType
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..errors import UserError
from .safetensors_file import TORCH_DTYPES, Header, PathLike, TensorInfo, read_header

Array: TypeAlias = NDArray[Any]

_NUMPY = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "F8_E4M3": "u1", "F8_E5M2": "u1",
    "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1", "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "u1", "BOOL": "?",
}  # fmt: skip
_BF16_NAN = np.uint16(0x7FC0)


class TensorFile:
    """An open safetensors file, read tensor by tensor and from several threads. Nothing is mapped: mapped pages would count as
    this process's memory, and a file that is cut short meanwhile would end it."""

    def __init__(self, path: PathLike) -> None:
        """UserError as `read_header`, and for a dtype that numpy cannot hold."""
        self.path = Path(path)
        self.header: Header = read_header(path)
        for name, info in self.header.tensors.items():
            if info.dtype not in _NUMPY:
                raise UserError(f"{path}: tensor {name} has dtype {info.dtype}, which this tool cannot read")
        self._file = self.path.open("rb")
        self._lock = threading.Lock()

    @property
    def tensors(self) -> dict[str, TensorInfo]:
        """Name -> dtype, shape and place, in the order of the file."""
        return self.header.tensors

    def array(self, name: str) -> Array:
        """The tensor as numpy holds it: bits for bfloat16 and fp8."""
        info = self.tensors[name]
        array = np.empty(info.shape, _NUMPY[info.dtype])
        if info.end > info.start:
            with self._lock:
                self._file.seek(info.start)
                count = self._file.readinto(as_bytes(array))
            if count != info.end - info.start:
                raise UserError(f"{self.path} ended while tensor {name} was read; is the file still being written?")
        return array

    def float32(self, name: str) -> NDArray[np.float32]:
        """The tensor in float32."""
        return to_float32(self.array(name), self.tensors[name].dtype)

    def number(self, name: str) -> float:
        """The value of a tensor with one element, such as an alpha. UserError for more than one."""
        info = self.tensors[name]
        if prod(info.shape) != 1:
            raise UserError(f"{self.path}: {name} is {list(info.shape)}; one number is expected")
        array = self.array(name)
        return float(to_float32(array, info.dtype).reshape(()) if is_float(info.dtype) else array.reshape(()))

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> TensorFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def is_float(dtype: str) -> bool:
    """Whether safetensors' dtype name means floating point numbers."""
    return dtype.startswith(("F", "BF"))


def to_float32(array: Array, dtype: str) -> NDArray[np.float32]:
    """A floating point array, as `TensorFile.array` gives it, in float32 (the same array where it is that already)."""
    if dtype == "BF16":
        bits = array.astype(np.uint32)
        bits <<= 16
        return bits.view(np.float32)
    if dtype.startswith("F8"):
        return _through_torch(array, dtype)
    return array.astype(np.float32, copy=False)


def from_float32(values: NDArray[np.float32], dtype: str) -> Array:
    """float32 -> `dtype`, as `TensorFile.array` holds it. `values` may be used as working memory."""
    if dtype == "F32":
        return values
    if dtype == "BF16":
        return _to_bfloat16(values)
    if dtype.startswith("F8"):
        import torch

        cast = torch.from_numpy(np.atleast_1d(values)).to(getattr(torch, TORCH_DTYPES[dtype])).view(torch.uint8)
        return cast.numpy().reshape(values.shape)
    with np.errstate(over="ignore"):  # beyond float16's range lies infinity, as in torch
        return values.astype(_NUMPY[dtype])


def rounded(value: float, dtype: str) -> float:
    """One number as `dtype` would hold it."""
    if dtype == "F64" or not is_float(dtype):
        return value
    return float(to_float32(from_float32(np.array(value, np.float32), dtype), dtype))


def as_bytes(array: Array) -> memoryview:
    """The bytes of an array as files hold them; without a copy if it is contiguous."""
    data: memoryview = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
    return data


def of_bytes(array: Array, dtype: str) -> Any:
    """The array as a torch tensor of `dtype`, sharing its memory."""
    import torch

    flat = torch.from_numpy(np.ascontiguousarray(array).reshape(-1).view(np.uint8))
    return flat.view(getattr(torch, TORCH_DTYPES[dtype])).view(array.shape)


def _to_bfloat16(values: NDArray[np.float32]) -> Array:
    flat = np.atleast_1d(np.asarray(values, order="C"))  # numpy makes plain numbers of arrays without dimensions
    bits = flat.view(np.uint32)
    halves = (bits >> 16) & 1
    halves += 0x7FFF
    halves += bits
    halves >>= 16
    result: Array = halves.astype(np.uint16)
    with np.errstate(all="ignore"):
        suspicious = not np.isfinite(flat.sum())  # one pass, where looking for NaN takes two
    if suspicious:
        result[np.isnan(flat)] = _BF16_NAN
    return result.reshape(values.shape)


def _through_torch(array: Array, dtype: str) -> NDArray[np.float32]:
    values: NDArray[np.float32] = of_bytes(array, dtype).float().numpy()
    return values
