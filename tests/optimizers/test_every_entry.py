"""Every optimizer of the table trains, and goes on after a save and a load with the same steps. Of libraries, where they are installed."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest
import torch
from musubi_backend.errors import UserError
from musubi_backend.optimizers import registry
from musubi_backend.optimizers.automagic import Automagic, Automagic3
from musubi_backend.optimizers.came import Came
from musubi_backend.optimizers.entry import Entry
from musubi_backend.optimizers.moments import EightBit, dynamic_code
from musubi_backend.optimizers.plain import balanced
from musubi_backend.training import optimizers
from musubi_backend.training.settings import OptimizerSettings
from musubi_backend.training.state_fit import OptimizerForm

SHAPES = ((8, 40), (48, 8))
LARGE = ((16, 300), (288, 16))  # bitsandbytes keeps 8 bits of weights with 4096 numbers or more


def installed(entry: Entry) -> None:
    """Skips where the package of an entry is missing."""
    if entry.needs:
        pytest.importorskip(entry.needs, reason=f"{entry.needs} is not installed; install.py --with optimizers has it")


def start(shapes: tuple[tuple[int, int], ...] = SHAPES, dtype: torch.dtype = torch.float32) -> list[tuple[str, torch.nn.Parameter]]:
    chance = torch.Generator().manual_seed(3)
    down, up = (torch.nn.Parameter((torch.randn(shape, generator=chance) * 0.1).to(dtype)) for shape in shapes)
    return [("lora_unet_x.lora_down.weight", down), ("lora_unet_x.lora_up.weight", up)]


def made(entry: Entry, named: list[tuple[str, torch.nn.Parameter]], rate: float) -> optimizers.Choice:
    groups = [{"params": [weight for _, weight in named], "lr": rate}]
    settings = OptimizerSettings(optimizer_type=entry.name, optimizer_args=())
    return optimizers.build(settings, rate, groups, {id(weight): name for name, weight in named})


def train(choice: optimizers.Choice, named: list[tuple[str, torch.nn.Parameter]], steps: range) -> None:
    choice.train()
    for step in steps:
        chance = torch.Generator().manual_seed(100 + step)
        for _, weight in named:
            weight.grad = weight.detach() + 0.01 * torch.randn(weight.shape, generator=chance).to(weight.dtype)
        choice.optimizer.step()
    choice.eval()


TRAINED = list(registry.ENTRIES)


@pytest.mark.parametrize(
    ("entry", "dtype"),
    [*((entry, torch.float32) for entry in TRAINED), *((entry, torch.bfloat16) for entry in TRAINED if entry.ours and not entry.needs)],
    ids=lambda one: one.name if isinstance(one, Entry) else str(one).removeprefix("torch."),
)
def test_saved_and_loaded_it_goes_on_with_the_same_steps(entry: Entry, dtype: torch.dtype) -> None:
    installed(entry)
    shapes = LARGE if entry.group == "8-bit" else SHAPES
    straight, halves = start(shapes, dtype), start(shapes, dtype)
    choice = made(entry, straight, entry.learning_rate)
    train(choice, straight, range(4))
    train(choice, straight, range(4, 8))
    assert not any(torch.equal(weight, was) for (_, weight), (_, was) in zip(straight, start(shapes, dtype), strict=True))
    first = made(entry, halves, entry.learning_rate)
    train(first, halves, range(4))
    file = io.BytesIO()
    torch.save(first.optimizer.state_dict(), file)
    file.seek(0)
    again = start(shapes, dtype)
    second = made(entry, again, entry.learning_rate)
    form = OptimizerForm(second.optimizer)  # as a training that is continued does
    for (_, weight), (_, saved) in zip(again, halves, strict=True):
        weight.data.copy_(saved.data)
    form.load(torch.load(file, weights_only=True))
    form.check()
    train(second, again, range(4, 8))
    for (_, one), (_, other) in zip(straight, again, strict=True):
        assert torch.equal(one, other)


def test_came_is_the_papers(problem: Any) -> None:
    weights = problem.weights(torch.float64)
    _, golden = problem.golden("paper/came")
    optimizer = Came(weights, lr=1e-3, weight_decay=0.01)
    assert problem.furthest(problem.run(optimizer, weights), golden) <= 1e-10


def test_lora_rite_pairs_by_name_and_refuses_what_has_no_partner() -> None:
    entry = registry.find("lora_rite")
    assert entry is not None
    installed(entry)
    named = start()
    there, back = made(entry, named, 1e-3), made(entry, named[::-1], 1e-3)
    order = [group["params"] for choice in (there, back) for group in choice.optimizer.param_groups]
    assert [list(map(id, weights)) for weights in order] == [[id(weight) for _, weight in named]] * 2
    with pytest.raises(UserError, match="pairs of a LoRA's matrices only"):
        made(entry, named[:1], 1e-3)
    settings = OptimizerSettings(optimizer_type="LoRA-RITE", optimizer_args=())
    with pytest.raises(UserError, match="leave loraplus_lr_ratio out"):
        optimizers.build(settings, 1e-3, [{"params": [weight], "lr": 1e-3} for _, weight in named])


@pytest.mark.parametrize("entry", [entry for entry in registry.ENTRIES if entry.ours and entry.group == "8-bit"], ids=lambda one: one.name)
def test_eight_bit_state_is_under_half_of_adamws(entry: Entry) -> None:
    named = start(LARGE)
    choice = made(entry, named, 1e-3)
    train(choice, named, range(1))
    held = 0
    for _, weight in named:
        state = choice.optimizer.state[weight]
        assert state["exp_avg"].dtype == torch.uint8
        held += sum(value.numel() * value.element_size() for value in state.values() if isinstance(value, torch.Tensor))
    weights = sum(weight.numel() for _, weight in named)
    assert held <= 0.45 * 8 * weights
    assert held / weights <= entry.state + 0.1


@pytest.mark.parametrize("signed", [True, False])
def test_the_code_is_the_fields_dynamic_one(signed: bool) -> None:
    code = dynamic_code(signed)
    assert len(code.unique()) == 256 and code[-1] == 1 and 0 in code
    assert torch.equal(code[:-1], -code[:-1].flip(0)) if signed else code[0] == 0
    theirs = pytest.importorskip("bitsandbytes.functional").create_dynamic_map(signed=signed)
    torch.testing.assert_close(code, theirs, rtol=0, atol=1e-7)


def test_averages_in_eight_bits_follow_small_changes_on_average() -> None:
    keeper, states = EightBit(), [dict[str, Any]()]
    value = torch.full((2048,), 0.01)
    value[::256] = 1.0  # the largest of each block stays, so that all others must move against it
    keeper.store("exp_avg_sq", states, value.unsqueeze(0), 0)
    for step in range(1, 201):
        squares = keeper.load("exp_avg_sq", states, [value])
        squares *= 0.999  # half of a code's distance is over 1 %
        squares[:, ::256] = 1.0
        keeper.store("exp_avg_sq", states, squares, step)
    squares = keeper.load("exp_avg_sq", states, [value])
    others = squares.view(-1, 256)[:, 1:]
    assert abs(others.mean() / (0.01 * 0.999**200) - 1) < 0.05


def test_small_squares_are_not_zeros_in_eight_bits() -> None:
    keeper, states = EightBit(), [dict[str, Any]()]
    value = torch.logspace(-10, 0, 256)
    keeper.store("exp_avg_sq", states, value.unsqueeze(0), 0)
    [squares] = keeper.load("exp_avg_sq", states, [value])
    assert bool((squares > 0).all()) and float((squares[80:] / value[80:] - 1).abs().max()) < 0.5


@pytest.mark.parametrize("run", ["automagic_default", "automagic_lr1e-4"])
def test_automagic_is_the_recorded_one_but_for_rounding_its_rates(problem: Any, run: str) -> None:
    metadata, golden = problem.golden(run)
    weights = problem.weights()
    moved = max((golden[name][-1] - problem.start[name]).abs().max().item() for name in problem.names)
    assert problem.furthest(problem.run(Automagic(weights, **json.loads(metadata["kwargs"])), weights), golden) <= 0.01 * moved


def test_automagic3_raises_the_rate_of_steady_gradients_and_lowers_that_of_turning_ones() -> None:
    for turning, goes in ((False, 1), (True, -1)):
        weight = torch.nn.Parameter(torch.zeros(4, 8))
        optimizer = Automagic3([weight], lr=1e-5)
        for step in range(6):
            weight.grad = torch.full_like(weight, -1.0 if turning and step % 2 else 1.0)
            optimizer.step()
        assert optimizer.state[weight]["log_rate"] == pytest.approx(3 * goes)  # of six steps three have seen four signs
    noise = torch.Generator().manual_seed(0)
    weight = torch.nn.Parameter(torch.zeros(64, 64))
    optimizer = Automagic3([weight], lr=1e-5)
    for _ in range(50):
        weight.grad = torch.randn(64, 64, generator=noise)
        optimizer.step()
    assert abs(optimizer.state[weight]["log_rate"]) < 0.3


def test_sinkgd_balances_rows_and_columns() -> None:
    matrix = balanced(torch.randn(6, 20, generator=torch.Generator().manual_seed(0)), 60)
    torch.testing.assert_close(matrix.norm(dim=0), torch.full((20,), 6**0.5))
    torch.testing.assert_close(matrix.norm(dim=1), torch.full((6,), 20**0.5), rtol=1e-4, atol=1e-4)


def test_wrong_arguments_of_ours_are_refused_with_the_nearest() -> None:
    for arguments, words in (
        (("use_cautius=True",), r"did you mean 'use_cautious'\?"),
        (("spd_lambda=2",), "from 0 to 1"),
        (("use_spd=1",), "True or False"),
        (("betas=(0.9,)",), "2 numbers"),
        (("spd_anchor='end'",), 'one of "start", "zero"'),
        (("warmup_steps=1.5",), "whole number"),
        (("use_grams=True", "use_cautious=True"), "contradict"),
    ):
        with pytest.raises(UserError, match=words):
            weight = torch.nn.Parameter(torch.ones(2))
            settings = OptimizerSettings(optimizer_type="AdaptiveHinaAdamW", optimizer_args=arguments)
            optimizers.build(settings, 1e-3, [{"params": [weight]}], {id(weight): "x"})
