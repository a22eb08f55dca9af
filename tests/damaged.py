"""Files as a failing disk, another program or somebody with bad intentions leaves them. The seeds are fixed: every run tries the same."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Iterator
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
