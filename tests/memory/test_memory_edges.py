"""The memory options at their edges: which GPUs, how many blocks, where they lie and how often they travel."""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from musubi_backend.architectures.loading import memory_plan
from musubi_backend.architectures.settings import LoadingSettings
from musubi_backend.errors import UserError
from musubi_backend.layers.linear import Linear
from musubi_backend.memory.fp8 import Fp8Linear
from musubi_backend.memory.plan import MemoryPlan, check_fast, swapped_per_list
from musubi_backend.memory.settings import MemorySettings
from musubi_backend.memory.streaming import BlockStream, swapped_blocks
from torch import nn


@pytest.mark.parametrize(("capability", "fits"), [((8, 0), False), ((8, 6), False), ((8, 9), True), ((9, 0), True), ((12, 0), True)])
def test_fp8_products_need_ada_or_later(capability: tuple[int, int], fits: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "This GPU")
    if fits:
        check_fast(torch.device("cuda"))
    else:
        with pytest.raises(UserError, match=r"RTX 40 or later.*This GPU does not"):
            check_fast(torch.device("cuda"))


@pytest.mark.parametrize(
    ("counts", "largest"),
    [((20, 40), 38), ((2, 2), 0), ((2, 4), 2), ((4, 40), 7), ((3, 8), 5), ((9, 9), 6), ((40,), 39), ((2,), 1), ((1,), 0)],
)
def test_the_largest_number_of_swapped_blocks_and_the_first_rejected(counts: tuple[int, ...], largest: int) -> None:
    if largest:
        shares = swapped_per_list(largest, counts)
        assert all(share < count for share, count in zip(shares, counts, strict=True))
    with pytest.raises(UserError, match=f"--blocks_to_swap {largest + 1}: at most {largest} of"):
        swapped_per_list(largest + 1, counts)


def test_what_was_asked_for_is_planned() -> None:
    given = MemorySettings(fp8_base=True, blocks_to_swap=3, block_swap_ring_size=4, use_pinned_memory_for_block_swap=True)
    assert MemoryPlan.chosen(given) == MemoryPlan(fp8=True, blocks_to_swap=3, ring=4, pinned=True)
    assert MemoryPlan.chosen(MemorySettings(fp8_scaled=True, fp8_fast=True)) == MemoryPlan(fp8=True, fp8_scaled=True, fp8_fast=True, ring=2)
    assert memory_plan(LoadingSettings.read({"fp8": True, "save_merged_model": "x", "blocks_to_swap": 3})) == MemoryPlan()


@pytest.mark.parametrize(
    ("plan", "has_scales", "target", "scaling"),
    [
        ({"fp8_fast": True, "fp8_scaled": True}, True, ("blocks",), "tensor"),
        ({"fp8_scaled": True}, False, ("blocks",), "block"),
        ({}, True, ("blocks",), "block"),
        ({}, False, ("blocks",), "none"),
        ({}, False, (), "block"),
    ],
)
def test_how_weights_are_scaled(plan: dict[str, bool], has_scales: bool, target: tuple[str, ...], scaling: str) -> None:
    weights, card = SimpleNamespace(scales={"a": 1} if has_scales else {}), SimpleNamespace(fp8_target=target)
    assert MemoryPlan(fp8=True, **plan)._scaling(weights, card) == scaling  # type: ignore[arg-type]


def test_matrices_lie_where_every_kernel_takes_them() -> None:
    stream = BlockStream([_Block()], torch.device("cpu"), 1)
    assert [start for _, start in stream.packed[0].places] == [0, 256] and len(stream.packed[0].memory) == 512


def test_a_double_block_counts_like_two_single_ones() -> None:
    assert [swapped_per_list(number, [20, 40]) for number in (1, 2, 3, 38)] == [[0, 3], [1, 3], [1, 5], [19, 39]]


def test_waiting_blocks_are_spread_evenly() -> None:
    assert swapped_blocks(6, 1, 2) == [1, 3, 5]
    assert swapped_blocks(40, 8, 2) == [2, 6, 10, 14, 18, 22, 26, 30, 34, 38]
    for count in (7, 20, 40):
        for swapped in range(1, count):
            waiting = swapped_blocks(count, swapped, 2)
            assert len(waiting) == min(count, swapped + 2)
            gaps = {after - before for before, after in pairwise(waiting)}
            assert max(gaps) - min(gaps) <= 1, (count, swapped)
            assert waiting[0] <= max(gaps) and count - 1 - waiting[-1] <= max(gaps)


class _Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = Linear(3, 3, bias=False).requires_grad_(False)  # 36 bytes: the next matrix begins at 256
        self.second = Linear(5, 3, bias=False).requires_grad_(False)


@pytest.mark.parametrize(("blocks", "ring"), [(5, 1), (5, 2), (8, 3), (3, 3), (2, 4)])
def test_transfers_in_an_epoch_are_what_does_not_fit_into_the_ring(blocks: int, ring: int, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched: list[int] = []
    fetch = BlockStream._fetch
    monkeypatch.setattr(BlockStream, "_fetch", lambda self, number, buffer: (fetched.append(number), fetch(self, number, buffer)))
    model = [_Block() for _ in range(blocks)]
    weights = [[linear.weight.clone() for linear in (block.linear, block.second)] for block in model]
    stream = BlockStream(model, torch.device("cpu"), ring)
    buffers = min(ring, blocks)
    assert fetched == list(range(buffers)), "the first blocks are there before the first step"

    def one_pass(x: torch.Tensor) -> torch.Tensor:
        for block, (first, second) in zip(model, weights, strict=True):
            x = stream.before(block, x)
            assert torch.equal(block.linear.weight, first) and torch.equal(block.second.weight, second)
            x = stream.after(block, block.linear(x))
        return x

    fetched.clear()
    steps = 4
    for _ in range(steps):
        one_pass(torch.ones(1, 3, requires_grad=True)).sum().backward()
    assert len(fetched) == steps * 2 * (blocks - buffers), "there and back, and nothing at the turns"
    fetched.clear()
    with torch.no_grad():
        for _ in range(steps):
            one_pass(torch.ones(1, 3))
    assert len(fetched) == (steps * blocks if blocks > buffers else 0)


def test_fast_products_are_for_sizes_the_hardware_takes() -> None:
    generator = torch.Generator().manual_seed(2)
    for width, fast_one in ((32, True), (24, False), (8, False)):
        linear = Fp8Linear(width, 16, False, scaling="tensor", fast=True).requires_grad_(False)
        stored, linear.scale_weight = linear.stored(torch.randn(16, width, generator=generator), None)
        linear.weight = nn.Parameter(stored, requires_grad=False)
        x = torch.randn(3, width, generator=generator)
        exact = nn.functional.linear(x, linear.dense(torch.float32))
        with torch.no_grad():
            assert torch.allclose(linear(x), exact, rtol=1e-5, atol=1e-5) is not fast_one


def test_a_block_out_of_turn_takes_the_place_of_the_one_needed_last() -> None:
    model = [_Block() for _ in range(5)]
    stream = BlockStream(model, torch.device("cpu"), 2)
    with torch.no_grad():
        stream.before(model[3], torch.ones(1, 3))
    assert set(stream.holds) == {0, 3}, "after 3 come 4 and 0, and 1 only then"
