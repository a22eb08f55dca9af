"""Blocks and activations that come and go: whatever the streams do, each is read after its copy and overwritten after its last read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

CONFIGURATIONS = [
    (count, swapped, ring, pinned, offload)
    for count in (3, 5, 8)
    for swapped in (1, count // 2, count - 1)
    for ring in (1, 2, 3)
    for pinned in (False, True)
    for offload in (False, True)
]
CHOSEN = [(5, 3, 2, True, False), (5, 2, 2, False, True)]
"""Of every kind something; the others take minutes."""


@pytest.mark.parametrize("configuration", CHOSEN, ids=str)
def test_nothing_is_overtaken(configuration: tuple[int, int, int, bool, bool], gpu: Callable[..., Any]) -> None:
    _check(gpu, *configuration)


@pytest.mark.slow
@pytest.mark.skipif("not config.getoption('--full', False)", reason="all of them take minutes: with --full (and tests/contract)")
@pytest.mark.parametrize("configuration", CONFIGURATIONS, ids=str)
def test_nothing_is_overtaken_in_any_configuration(configuration: tuple[int, int, int, bool, bool], gpu: Callable[..., Any]) -> None:
    _check(gpu, *configuration)


def _check(gpu: Callable[..., Any], count: int, swapped: int, ring: int, pinned: bool, offload: bool) -> None:
    report = gpu("streamed", count, swapped, ring, pinned, offload, offload)
    assert report["races"] == []
    assert sum(report["done"].values()) == 6 and report["copied"]["to device, pinned"] > 0
