"""Which layers are held in fp8, how they are scaled, and what the weights of a swapped model take."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import pytest
from musubi_backend.dataset.order import mixed
from musubi_backend.layers.linear import Linear
from musubi_backend.memory.plan import MemoryPlan, fp8_layers
from torch import nn


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.ffn = Linear(4, 4, bias=False)
        self.norm_out = nn.Linear(4, 4, bias=False)


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(4))
        self.head = nn.Linear(4, 4, bias=False)

    def block_lists(self) -> list[nn.ModuleList]:
        return [self.blocks]


def test_linears_of_blocks_are_held_in_fp8_but_for_the_excluded() -> None:
    card: Any = SimpleNamespace(fp8_target=("blocks",), fp8_exclude=("norm",))
    assert fp8_layers(Model(), card) == [f"blocks.{number}.ffn" for number in range(4)]


@pytest.mark.parametrize(
    ("plan", "scales", "target", "scaling"),
    [
        ({"fp8_fast": True, "fp8_scaled": True}, True, ("x",), "tensor"), ({"fp8_scaled": True}, False, ("x",), "block"),
        ({}, True, ("x",), "block"), ({}, False, (), "block"), ({}, False, ("x",), "none"),
    ],
)  # fmt: skip
def test_weights_are_scaled_as_asked_or_as_their_file_is(plan: dict[str, bool], scales: bool, target: Any, scaling: str) -> None:
    weights, card = SimpleNamespace(scales=scales), SimpleNamespace(fp8_target=target)
    assert MemoryPlan(fp8=True, **plan)._scaling(weights, card) == scaling  # type: ignore[arg-type]


def test_the_device_holds_what_does_not_wait_and_the_buffers() -> None:
    """A matrix takes 64 bytes. Of four blocks three wait, so that with two buffers at most three are on the device."""
    others = 5 * 64  # the norms of the blocks and the head
    assert MemoryPlan(blocks_to_swap=1, ring=2).weights(Model()) == (others + 64 + 2 * 64, 3 * 64)
    assert MemoryPlan().weights(Model()) == (others + 4 * 64, 0)


def test_every_epoch_mixes_the_batches_of_all_datasets_in_its_own_order() -> None:
    for seed, epoch in ((7, 1), (7, 2), (8, 1)):
        wanted = list(range(9))
        random.Random(f"{seed}:{epoch}").shuffle(wanted)
        assert mixed(range(9), seed, epoch) == wanted
