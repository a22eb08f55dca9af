"""The order of an epoch: a pure function of what there is and of (seed, epoch).

Each data set shuffles its buckets, then its batches, then its timestep strata, with the algorithm of musubi-tuner, seeded by
seed + epoch. Two differences: an epoch starts from the sorted order instead of the previous epoch's, so that any epoch can be
built without the ones before it, and the batches of several data sets are mixed with a generator of our own instead of
PyTorch's data loader.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from typing import TypeVar

T = TypeVar("T")
Key = tuple[int | str, ...]


def shuffled_batches(
    buckets: Mapping[Key, Sequence[T]], batch_size: int, seed: int, strata: int | None = None
) -> list[tuple[Key, tuple[T, ...], tuple[float, ...] | None]]:
    """(bucket key, items, timesteps) of every batch of one data set in the order of the epoch that `seed` stands for.

    No batch mixes buckets; the last batch of a bucket may be short. `timesteps` holds one position in 0..1 per item when there
    are at least two strata (`--num_timestep_buckets`), else None.
    """
    generator = random.Random(seed)  # noqa: S311 (an order, not a secret)
    keys = sorted(buckets, key=sortable)
    contents = {key: list(buckets[key]) for key in keys}
    for items in contents.values():
        generator.shuffle(items)
    slots = [(key, start) for key in keys for start in range(0, len(contents[key]), batch_size)]
    generator.shuffle(slots)
    pool = _timesteps(len(slots) * batch_size, strata, generator) if strata is not None and strata > 1 else None
    result = []
    for number, (key, start) in enumerate(slots):
        batch = tuple(contents[key][start : start + batch_size])
        first = number * batch_size
        result.append((key, batch, None if pool is None else tuple(pool[first : first + len(batch)])))
    return result


def mixed(batches: Sequence[T], seed: int, epoch: int) -> list[T]:
    """The batches of all data sets in the order they are trained."""
    result = list(batches)
    random.Random(f"{seed}:{epoch}").shuffle(result)  # noqa: S311
    return result


def _timesteps(count: int, strata: int, generator: random.Random) -> list[float]:
    """`count` draws spread evenly over `strata` equal parts of 0..1, shuffled."""
    per_stratum = math.ceil(count / strata)
    draws = [generator.uniform(part / strata, (part + 1) / strata) for part in range(strata) for _ in range(per_stratum)]
    generator.shuffle(draws)
    return draws[:count]


def sortable(key: Key) -> tuple[tuple[bool, int | str], ...]:
    """What bucket keys are sorted by: they may hold numbers and text, and numbers come first."""
    return tuple((isinstance(part, str), part) for part in key)
