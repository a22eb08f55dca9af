"""Seeds that follow from another one. Standard library only."""

from __future__ import annotations

import hashlib


def derived_seed(seed: int, *place: int | str) -> int:
    """A seed for one place of a run, such as (micro-step, process). Independent for different places and seeds."""
    text = "/".join(str(part) for part in (seed, *place)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1
