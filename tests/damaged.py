"""Files as a failing disk, another program or somebody with bad intentions leaves them. The seeds are fixed: every run tries the same."""

from __future__ import annotations

import copy
import json
import math
import random
import re
import struct
from collections.abc import Callable, Iterator
from typing import Any

ODD: list[Any] = [None, True, -1, 1e999, "x", "\ud800", [], {}, [[1]], 10**40, 10**17, 0.5, "a" * 5000]
HOSTILE = [
    b"[" * 100_000,
    b'{"a":' * 50_000,
    b"9" * 50_000,
    b"\xff\xfe",
    b'"\\ud800"',
    b"nul",
    b"",
    b'{"a": 1e999}',
    b"a = " + b"[" * 50_000,
]


def damaged(seed: bytes) -> Iterator[bytes]:
    source = random.Random(11)
    yield from HOSTILE
    for _ in range(500):
        content = bytearray(seed)
        for _ in range(source.randrange(1, 6)):
            at = source.randrange(len(content))
            content[at : at + source.randrange(4)] = source.choice([b"\x00", b"\xff", b"[", b"}", b'"', b"1e9", b"\\ud8", b"9" * 60, b""])
        yield bytes(content)


def with_odd_values(whole: Any, count: int = 500) -> Iterator[bytes]:
    """JSON texts of `whole`, each with one to three of its values, at any depth, replaced by something odd or left out."""
    source = random.Random(17)
    for _ in range(count):
        value = copy.deepcopy(whole)
        for _ in range(source.randrange(1, 4)):
            places = list(_places(value))
            if places:
                inside, key = source.choice(places)
                if source.random() < 0.2:
                    del inside[key]
                else:
                    inside[key] = source.choice(ODD)
        yield json.dumps(value).encode()


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in entries:
        yield value, key
        yield from _places(inner)


def damaged_headers(data: bytes) -> Iterator[tuple[str, bytes]]:
    """Safetensors files made of a good one that was cut or mixed up, each with what was done to it."""
    size, whole, tensors = _parts(data)

    def each(**changes: Any) -> bytes:
        return _joined({name: {**info, **changes} if name != "__metadata__" else info for name, info in whole.items()}, tensors)

    yield from {
        "empty": b"", "7 bytes": data[:7], "half a header": data[: size // 2], "cut": data[:-50], "zeros": bytes(len(data)),
        "huge header": struct.pack("<Q", 2**63) + data[8:], "a pointer": b"version https://git-lfs.github.com/spec/v1\n",
        "a list": _joined([], b""), "no tensors": _joined({}, b""), "text": b"<!DOCTYPE html>" * 99,
        "same offsets": each(data_offsets=[0, 4]), "dtype X9": each(dtype="X9"), "dtype 7": each(dtype=7),
        **{f"shape {shape}": each(shape=shape) for shape in ([-1, 4], [2**40, 2**40], "abc", None)},
    }.items()  # fmt: skip


def with_other_shapes(data: bytes) -> Iterator[tuple[str, bytes]]:
    """Safetensors files that are whole and have what a good one has, but for shapes, dtypes and metadata, each with what was changed."""
    _, whole, tensors = _parts(data)

    def shaped(shape: Callable[[list[int]], list[int]]) -> bytes:
        header, offset = copy.deepcopy(whole), 0
        for name, info in header.items():
            if name != "__metadata__":
                width = (info["data_offsets"][1] - info["data_offsets"][0]) // max(1, math.prod(info["shape"]))
                info["shape"] = shape(info["shape"])
                info["data_offsets"] = [offset, offset := offset + width * math.prod(info["shape"])]
        return _joined(header, bytes(offset))

    def typed(dtype: str, width: int) -> bytes:
        header, offset = copy.deepcopy(whole), 0
        for name, info in header.items():
            if name != "__metadata__":
                info |= {"dtype": dtype, "data_offsets": [offset, offset := offset + width * math.prod(info["shape"])]}
        return _joined(header, bytes(offset))

    def told(digits: str) -> bytes:
        return _joined(
            {**whole, "__metadata__": {key: re.sub(r"\d", digits, text) for key, text in whole.get("__metadata__", {}).items()}}, tensors
        )

    yield from {
        "some missing": _joined({name: whole[name] for name in list(whole)[::3]}, tensors),
        "told zeros": told("0"), "told nines": told("9"),
        "nothing told": _joined({name: info for name, info in whole.items() if name != "__metadata__"}, tensors),
        "I32": typed("I32", 4), "U8": typed("U8", 1), "BOOL": typed("BOOL", 1), "F64": typed("F64", 8),
        "flat": shaped(lambda shape: [math.prod(shape)]), "scalars": shaped(lambda shape: []), "no elements": shaped(lambda shape: [0]),
        "one more": shaped(lambda shape: [1, *shape]), "turned": shaped(lambda shape: shape[::-1]),
        "longer": shaped(lambda shape: [2 * size for size in shape[:1]] + shape[1:]),
        "wider": shaped(lambda shape: shape[:-1] + [2 * size for size in shape[-1:]]),
        "shorter": shaped(lambda shape: [max(1, size // 2) for size in shape[:1]] + shape[1:]),
    }.items()  # fmt: skip


def _parts(data: bytes) -> tuple[int, dict[str, Any], bytes]:
    """Size of the header, the header, the rest."""
    size: int = struct.unpack("<Q", data[:8])[0]
    return size, json.loads(data[8 : 8 + size]), data[8 + size :]


def _joined(header: Any, tensors: bytes) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + tensors
