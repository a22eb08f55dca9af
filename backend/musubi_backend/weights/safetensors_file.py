"""safetensors files: header without torch, tensors one by one, atomic save.

Format: 8 bytes little endian header length N, N bytes of JSON {name: {dtype, shape, data_offsets}}, then the raw tensors
(github.com/huggingface/safetensors, README). Reading a header needs only the standard library.
"""

from __future__ import annotations

import json
import os
import re
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from ..atomic import replacing
from ..counted import counted
from ..documents import parse_json, read_json, whole_number
from ..errors import UserError
from ..ordinary import check_ordinary

if TYPE_CHECKING:
    import torch
    from torch import Tensor

PathLike: TypeAlias = str | os.PathLike[str]

# In the order in which the safetensors library sorts dtypes
DTYPE_BITS = {
    "BOOL": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32, "C64": 64, "F64": 64, "I64": 64,
    "U64": 64,
}  # fmt: skip

_DTYPE_ORDER = {name: position for position, name in enumerate(DTYPE_BITS)}

TORCH_DTYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2",
    "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8", "U8": "uint8", "BOOL": "bool",
}  # fmt: skip

DTYPE_NAMES = {torch_name: name for name, torch_name in TORCH_DTYPES.items()}

INDEX_SUFFIX = ".safetensors.index.json"
_MAX_HEADER = 100_000_000
_SPLIT_NAME = re.compile(r"^(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})(?P<suffix>\.safetensors)$")


@dataclass(frozen=True)
class TensorInfo:
    """Where one tensor lies. `start` and `end` are absolute byte positions in the file; dtype is safetensors' name ("BF16")."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True)
class Header:
    """Names, shapes and text metadata of a safetensors file."""

    tensors: dict[str, TensorInfo]
    metadata: dict[str, str]


def read_header(path: PathLike) -> Header:
    """The header of `path`. UserError when the file is missing, no safetensors file, or of another size than its header says."""
    file_path = Path(path)
    try:
        check_ordinary(file_path)
        size = file_path.stat().st_size
        with file_path.open("rb") as file:
            prefix = file.read(8)
            length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else -1
            if length < 2 or length > min(_MAX_HEADER, max(size, 8)):
                raise UserError(f"{file_path} is not a safetensors file ({size} bytes, no valid header). {_hint(prefix, size)}")
            if size < 8 + length:
                raise UserError(_truncated(file_path, size, 8 + length))
            raw = file.read(length)
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{file_path} does not exist") from None
    except IsADirectoryError:
        raise UserError(f"{file_path} is a folder; give a .safetensors file") from None
    except OSError as error:
        raise UserError(f"{file_path} cannot be read: {error.strerror or error}") from error
    return _parse(file_path, raw, 8 + length, size)


def _parse(path: Path, raw: bytes, data_start: int, size: int) -> Header:
    try:
        entries = parse_json(raw, dict, paths=True)
        metadata = {str(k): str(v) for k, v in (entries.pop("__metadata__", None) or {}).items()}
        tensors = {}
        for name, entry in entries.items():
            start, end = (data_start + whole_number(offset, "data_offsets") for offset in entry["data_offsets"])
            tensors[name] = TensorInfo(str(entry["dtype"]), tuple(whole_number(n, "shape") for n in entry["shape"]), start, end)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is not a safetensors file: its header is damaged ({error}). Download it again.") from error
    needed = max((info.end for info in tensors.values()), default=data_start)
    if size < needed:
        raise UserError(_truncated(path, size, needed))
    for name, info in tensors.items():
        bits = DTYPE_BITS.get(info.dtype)
        if bits is None:
            raise UserError(f"{path}: tensor {name} has the unknown dtype {info.dtype}; this file needs a newer version of this program")
        if (info.end - info.start) * 8 != prod(info.shape) * bits or info.start < data_start:
            raise UserError(f"{path} is damaged: tensor {name} ({info.dtype} {list(info.shape)}) does not fit its bytes; fetch it again")
    if size > needed:
        raise UserError(f"{path} is damaged: it has {counted(size - needed, 'byte')} more than its header says; fetch it again")
    return Header(tensors, metadata)


def _truncated(path: Path, size: int, needed: int) -> str:
    return f"{path} is truncated: {size} bytes of {needed}. The download or copy did not finish; fetch the file again."


def _hint(prefix: bytes, size: int) -> str:
    if prefix.startswith(b"version "):
        return "It is a git-lfs pointer: download the real file."
    if prefix.startswith(b"PK"):
        return "It looks like a PyTorch pickle (.pth) with the wrong name."
    if prefix.startswith(b"GGUF"):
        return "It is a GGUF file, which is not supported: use a .safetensors file."
    return "The file is empty." if size == 0 else "Download it again."


def split_files(path: PathLike) -> list[Path]:
    """All files of a split model: of which `path` is any one (`name-00001-of-00003.safetensors`), in order; of its index
    (`….safetensors.index.json`) or of a folder with one index. Else [path].

    UserError names the first missing part, and a tensor that is not where the index says.
    """
    file_path = Path(path)
    index = _index_of(file_path)
    if index is not None:
        return _indexed(index)
    match = _SPLIT_NAME.match(file_path.name)
    if match is None:
        return [file_path]
    count = int(match["count"])
    parts = [file_path.with_name(f"{match['stem']}-{n:05d}-of-{count:05d}{match['suffix']}") for n in range(1, count + 1)]
    for part in parts:
        if not part.is_file():
            raise UserError(f"{file_path} is one of {count} parts, and {part} is missing; put all parts into one folder")
    return parts


def _index_of(path: Path) -> Path | None:
    """The index that `path` is, or the one in it. UserError for a folder with several."""
    if path.name.endswith(INDEX_SUFFIX):
        return path
    found = sorted(path.glob(f"*{INDEX_SUFFIX}")) if path.is_dir() else []
    if len(found) > 1:
        raise UserError(f"{path} holds several models ({', '.join(one.name for one in found)}); name the index of one")
    return found[0] if found else None


def _indexed(index: Path) -> list[Path]:
    """The parts that an index names, all in its folder, after a look into each header."""
    try:
        places = read_json(index, dict).get("weight_map")
    except (OSError, ValueError) as error:
        raise UserError(f"{index} cannot be read as the index of a split model: {error}") from error
    if not isinstance(places, dict) or not places or not all(isinstance(name, str) for name in places.values()):
        raise UserError(f"{index} is not the index of a model: it has no weight_map of tensors and files")
    parts = []
    for name in sorted(set(places.values())):
        if name in ("", ".", "..") or "/" in name or "\\" in name or not name.endswith(".safetensors"):
            raise UserError(f"{index} names {name!r}; only .safetensors files in its own folder are opened")
        part = index.with_name(name)
        if not part.is_file():
            raise UserError(f"{part} is missing, which {index.name} names; put all parts into one folder")
        tensors = read_header(part).tensors
        lost = next((tensor for tensor, place in places.items() if place == name and tensor not in tensors), None)
        if lost is not None:
            raise UserError(f"{part} does not hold {lost}, which {index.name} says it does; the two belong to different downloads")
        parts.append(part)
    return parts


def read_model_header(path: PathLike, prefixes: Sequence[str] = ()) -> Header:
    """The headers of all files of a model as one. prefixes: of those, the first that any name has is removed, and other names are left
    out (they belong to other models in the same file). UserError as `read_header` and `split_files`."""
    headers = [read_header(part) for part in split_files(path)]
    tensors = {name: info for header in headers for name, info in header.tensors.items()}
    prefix = common_prefix(tensors, prefixes)
    metadata = {key: value for header in headers for key, value in header.metadata.items()}
    return Header(without_prefix(tensors, prefix), metadata)


def common_prefix(names: Iterable[str], prefixes: Sequence[str]) -> str:
    """The first of `prefixes` that any name has; "" where there is none."""
    known = list(names)
    return next((prefix for prefix in prefixes if any(name.startswith(prefix) for name in known)), "")


def without_prefix(tensors: Mapping[str, TensorInfo], prefix: str) -> dict[str, TensorInfo]:
    """The tensors whose names begin with `prefix`, without it."""
    return {name.removeprefix(prefix): info for name, info in tensors.items() if name.startswith(prefix)}


def load(path: PathLike, device: str | torch.device = "cpu") -> dict[str, Tensor]:
    """All tensors of one file. UserError as `read_header`."""
    return dict(iterate(path, device))


def describe(path: PathLike) -> dict[str, Tensor]:
    """As `load` on the device "meta": shapes and dtypes. Reads the header only."""
    import torch

    tensors = read_header(path).tensors
    return {name: torch.empty(info.shape, dtype=torch_dtype(name, info, path), device="meta") for name, info in tensors.items()}


def torch_dtype(name: str, info: TensorInfo, path: PathLike) -> torch.dtype:
    """PyTorch's dtype of a stored tensor. UserError where it has none."""
    import torch

    if info.dtype not in TORCH_DTYPES:
        raise UserError(f"{path}: tensor {name} has dtype {info.dtype}, which PyTorch cannot hold; use a bf16 or fp16 version of this file")
    dtype: torch.dtype = getattr(torch, TORCH_DTYPES[info.dtype])
    return dtype


def iterate(path: PathLike, device: str | torch.device = "cpu") -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) of one file in storage order, each read only when asked for, so that one tensor at a time is in flight."""
    import torch

    header = read_header(path)
    with Path(path).open("rb") as file:
        for name, info in sorted(header.tensors.items(), key=lambda item: item[1].start):
            yield name, read_tensor(file, name, info, Path(path)).to(torch.device(device))


def read_tensor(file: Any, name: str, info: TensorInfo, path: Path, scratch: Tensor | None = None) -> Tensor:
    """One tensor read from an open binary file (no mapping, which would pin the file) into memory of its own.

    scratch: a uint8 tensor at least as large, whose memory the result uses instead, until it is overwritten.
    """
    import torch

    size, dtype = info.end - info.start, torch_dtype(name, info, path)
    tensor = torch.empty(info.shape, dtype=dtype) if scratch is None else scratch[:size].view(dtype).view(info.shape)
    if size:
        file.seek(info.start)
        if file.readinto(tensor.view(-1).view(torch.uint8).numpy()) != size:
            raise UserError(f"{path} ended while tensor {name} was read; is the file still being written?")
    return tensor


def read_into(file: Any, name: str, info: TensorInfo, path: Path, piece: Tensor, made: Tensor, had: Callable[[int], None]) -> None:
    """Fill `made`, of any dtype and on any device, with one tensor, through the memory of `piece` (uint8): read whole, one of 2 GB would be
    there twice. had: told the bytes of each piece."""
    import torch

    size, dtype = info.end - info.start, torch_dtype(name, info, path)
    flat, at = made.view(-1), 0
    file.seek(info.start)
    while at < len(flat):
        part = piece[: min(len(piece), size - at * dtype.itemsize)].view(dtype)
        if file.readinto(part.view(torch.uint8).numpy()) != part.nbytes:
            raise UserError(f"{path} ended while tensor {name} was read; is the file still being written?")
        flat[at : at + len(part)].copy_(part)
        at += len(part)
        had(part.nbytes)


def save_atomic(tensors: Mapping[str, Tensor], path: PathLike, metadata: Mapping[str, str] | None = None) -> None:
    """Write `tensors` so that `path` holds either its old content or all of the new one. OSError when the disk is full.

    Equal input gives equal bytes. Written by hand because the safetensors library makes files that only their owner may read
    (ComfyUI may run as another user), puts metadata in a random order and copies every tensor first.
    """
    names, header = layout(tensors, metadata)
    with replacing(path) as part, part.open("wb") as file:
        file.write(header)
        for name in names:
            file.write(bytes_of(tensors[name]))


def layout(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> tuple[list[str], bytes]:
    """(names in the order their data is stored, everything before that data), as the safetensors library lays a file out: by dtype, wide
    ones first, so that all data is aligned, then by name."""
    return layout_of({name: (dtype_name(tensor.dtype), tuple(tensor.shape)) for name, tensor in tensors.items()}, metadata)


def layout_of(tensors: Mapping[str, tuple[str, tuple[int, ...]]], metadata: Mapping[str, str] | None = None) -> tuple[list[str], bytes]:
    """As `layout`, from name -> (safetensors' dtype name, shape)."""
    names = sorted(tensors, key=lambda name: (-_DTYPE_ORDER[tensors[name][0]], name))
    entries: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    offset = 0
    for name in names:
        dtype, shape = tensors[name]
        size = prod(shape) * DTYPE_BITS[dtype] // 8
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    # "replace": a path that is not valid Unicode may stand in the metadata, and must not cost the file
    text = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")
    text += b" " * (-len(text) % 8)
    return names, struct.pack("<Q", len(text)) + text


def bytes_of(tensor: Tensor) -> memoryview:
    """The bytes of a tensor as files hold them; without a copy if it is contiguous and on the CPU."""
    import torch

    data: memoryview = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data
    return data


def dtype_name(dtype: torch.dtype) -> str:
    """safetensors' name of a dtype. ValueError for those it has none for."""
    name = str(dtype).removeprefix("torch.")
    if name not in DTYPE_NAMES:
        raise ValueError(f"{name} tensors cannot be stored in a safetensors file")
    return DTYPE_NAMES[name]
