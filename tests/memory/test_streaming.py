"""Blocks offloaded to system RAM: the same numbers and gradients, few blocks at a time, few transfers. On the CPU, where "the device" is
other memory of the same kind: everything but CUDA's streams is what runs on a GPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from musubi_backend.architectures.wan.card import CARD
from musubi_backend.architectures.wan.model import WanGeometry, WanTransformer
from musubi_backend.errors import UserError
from musubi_backend.lora.network import LoRANetwork
from musubi_backend.memory.fp8 import Fp8Linear, hold_in_fp8
from musubi_backend.memory.plan import MemoryPlan, fp8_layers, swapped_per_list
from musubi_backend.memory.streaming import BlockStream, swapped_blocks
from torch import Tensor

CPU = torch.device("cpu")
BLOCKS = 6
GEOMETRY = WanGeometry(dim=16, ffn_dim=24, num_heads=2, num_layers=BLOCKS, text_dim=12, text_len=16, freq_dim=16)


def build(fp8: bool = False, checkpointing: bool = False) -> tuple[WanTransformer, LoRANetwork]:
    """A model with a LoRA that is not zero; every call gives the same weights."""
    generator = torch.Generator().manual_seed(3)
    model = WanTransformer(GEOMETRY)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1 if parameter.ndim == 1 else parameter[0].numel() ** -0.5, generator=generator)
    if fp8:
        weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        names = fp8_layers(model, CARD)
        hold_in_fp8(model, names, "block")
        for name in names:
            linear: Any = model.get_submodule(name)
            stored, linear.scale_weight = linear.stored(weights[f"{name}.weight"], None)
            linear.weight = torch.nn.Parameter(stored, requires_grad=False)
            linear.bias = torch.nn.Parameter(weights[f"{name}.bias"], requires_grad=False)
    model.requires_grad_(False).eval()
    model.gradient_checkpointing = checkpointing
    network = LoRANetwork.create(model, CARD, rank=3, alpha=2.0)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2, generator=generator)
    return model, network


def stream(model: WanTransformer, swapped: int, ring: int) -> SimpleNamespace:
    """Streams blocks of `model`; returns the stream, its transfers so far and how many blocks were ever resident at a time."""
    waiting = swapped_blocks(len(model.blocks), swapped, ring)
    made = BlockStream([model.blocks[index] for index in waiting], CPU, ring)
    watched = SimpleNamespace(stream=made, fetched=[], waiting=waiting)
    fetch = made._fetch

    def watch(number: int, buffer: int) -> None:
        watched.fetched.append(waiting[number])
        fetch(number, buffer)

    made._fetch = watch  # type: ignore[method-assign]
    return watched


def inputs() -> tuple[Tensor, Tensor, list[Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(1, 16, 2, 4, 4, generator=generator), torch.tensor([500.0]), [torch.randn(5, 12, generator=generator)]


def train(model: WanTransformer, network: LoRANetwork) -> tuple[Tensor, list[Tensor]]:
    network.zero_grad()
    out = model(*inputs())
    out.square().mean().backward()
    return out.detach(), [parameter.grad.clone() for parameter in network.parameters() if parameter.grad is not None]


def sample(model: WanTransformer, skip: Sequence[int] = ()) -> Tensor:
    with torch.no_grad():
        result: Tensor = model(*inputs(), skip_blocks=skip)
        return result


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("fp8", [False, True])
@pytest.mark.parametrize(("swapped", "ring"), [(1, 2), (3, 2), (BLOCKS - 1, 1), (BLOCKS - 1, 2), (4, 3)])
def test_outputs_and_gradients_are_the_same(swapped: int, ring: int, fp8: bool, checkpointing: bool) -> None:
    expected = train(*build(fp8, checkpointing))
    model, network = build(fp8, checkpointing)
    stream(model, swapped, ring)
    for _ in range(2):
        out, gradients = train(model, network)
        torch.testing.assert_close(out, expected[0])
        assert len(gradients) == len(expected[1])
        for one, other in zip(gradients, expected[1], strict=True):
            torch.testing.assert_close(one, other)


@settings(max_examples=20, deadline=None)
@given(
    swapped=st.integers(1, BLOCKS - 1),
    ring=st.integers(1, 4),
    actions=st.lists(st.sampled_from(["sample", "skip", "train", "broken"]), min_size=1, max_size=4),
)
def test_any_order_of_passes_gives_the_right_weights(swapped: int, ring: int, actions: list[str]) -> None:
    plain, plain_network = build()
    model, network = build()
    stream(model, swapped, ring)
    for action in actions:
        if action == "train":
            (out, gradients), (expected, wanted) = train(model, network), train(plain, plain_network)
            assert all(torch.equal(one, other) for one, other in zip(gradients, wanted, strict=True))
        elif action == "broken":  # a pass that ends in the middle
            with pytest.raises(RuntimeError), torch.no_grad():
                _run_until_block(model, BLOCKS // 2)
            continue
        else:
            skip = (1, 4) if action == "skip" else ()
            out, expected = sample(model, skip), sample(plain, skip)
        assert torch.equal(out, expected)


def _run_until_block(model: WanTransformer, index: int) -> None:
    hook = model.blocks[index].register_forward_pre_hook(_fail)
    try:
        model(*inputs())
    finally:
        hook.remove()


def _fail(*_: object) -> None:
    raise RuntimeError("stopped here")


def test_no_more_blocks_than_asked_for_are_on_the_device() -> None:
    for count in (2, 6, 40):
        for swapped in range(1, count):
            for ring in (1, 2, 3):
                waiting = swapped_blocks(count, swapped, ring)
                assert len(set(waiting)) == len(waiting)
                assert max(waiting) < count
                buffers = min(ring, len(waiting))
                assert count - len(waiting) + buffers <= max(count - swapped, ring)


def test_the_next_blocks_are_fetched_ahead_and_the_turn_costs_nothing() -> None:
    model, network = build()
    watched = stream(model, 4, 2)  # all but two buffers' worth: every block waits
    assert watched.waiting == list(range(BLOCKS))
    train(model, network)
    assert watched.fetched == [2, 3, 4, 5, 3, 2, 1, 0]
    train(model, network)
    assert watched.fetched[8:] == [2, 3, 4, 5, 3, 2, 1, 0]
    watched.fetched.clear()
    sample(model)
    sample(model)
    assert watched.fetched == [2, 3, 4, 5, 0, 1] * 2


def test_weights_are_always_readable_and_moving_the_model_leaves_them_alone() -> None:
    model, network = build(fp8=True)
    expected = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    stream(model, 3, 2)
    sample(model)
    for _ in range(2):
        state = model.state_dict()
        assert list(state) == list(expected)
        assert all(torch.equal(state[name].float(), expected[name].float()) for name in expected)
        model.to(torch.float64).to(torch.float32)
    linear = model.blocks[1].ffn[0]
    assert isinstance(linear, Fp8Linear)
    assert linear.weight.dtype == torch.float8_e4m3fn
    assert linear.device == CPU
    assert next(network.lora_modules()).lora_down.weight.device == CPU


def test_shares_of_the_block_lists() -> None:
    assert swapped_per_list(10, [40]) == [10]
    assert swapped_per_list(10, [20, 40]) == [5, 11]
    assert swapped_per_list(38, [20, 40]) == [19, 39]
    assert swapped_per_list(0, [20, 40]) == [0, 0]
    for too_many, counts, largest in ((40, [40], 39), (39, [20, 40], 38), (1, [1], 0)):
        with pytest.raises(UserError, match=rf"--blocks_to_swap {too_many}: at most {largest} of the blocks"):
            swapped_per_list(too_many, counts)


def test_two_lists_each_have_their_own_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = build()
    expected = sample(model)
    lists = [torch.nn.ModuleList(model.blocks[:2]), torch.nn.ModuleList(model.blocks[2:])]
    monkeypatch.setattr(model, "block_lists", lambda: lists)
    plan = MemoryPlan(blocks_to_swap=2, ring=1)
    assert {name.split(".")[1] for name in plan.stay(model)} == {"0", "1", "2", "3", "4", "5"}
    plan.finish(model, CPU)
    streams: list[Callable[..., Any]] = [block.stream for block in model.blocks]  # type: ignore[misc]
    assert streams[0] is not streams[2]
    assert torch.equal(sample(model), expected)
