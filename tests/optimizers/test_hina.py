"""HinaAdamW and AdaptiveHinaAdamW: the old rule is the recorded one, the sound one is bounded, continues exactly and says what it does."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from musubi_backend.optimizers import staged
from musubi_backend.optimizers.hina import AdaptiveHinaAdamW, HinaAdamW
from musubi_backend.optimizers.pairing import by_name, discover
from torch.optim import Optimizer
from torch.utils._python_dispatch import TorchDispatchMode

OLD = (
    *(f"ahadamw_{name}" for name in ("default", "default_lr1e-2", "plain")),
    *(
        f"ahadamw_only_{name}"
        for name in ("adopt_stability", "agr", "cautious", "dynamic_adaptation", "dynamic_weight_decay", "grams", "lr_mask",
                     "orthogonal_grad", "spd", "tam", "tam_beta0.9")
    ),
    *(f"hinaadamw_{name}" for name in ("default", "default_unnamed", "plain")),
    *(f"hinaadamw_only_{name}" for name in ("agr", "cautious", "dynamic_weight_decay", "grams", "orthogonal_grad", "spd", "tam")),
)  # fmt: skip


@pytest.mark.parametrize("name", OLD)
def test_legacy_is_the_recorded_rule(problem: Any, name: str) -> None:
    metadata, golden = problem.golden(name)
    weights = problem.weights()
    make = AdaptiveHinaAdamW if name.startswith("ahadamw") else HinaAdamW
    given = problem.named(weights) if metadata["groups"] != "plain" else weights
    optimizer = make(given, **json.loads(metadata["kwargs"]), legacy=True)
    # where weights are thrown to 40, the resolution of float32 is what it is
    reach = max(1.0, float(max(value.abs().max() for value in golden.values())))
    assert problem.furthest(problem.run(optimizer, weights), golden) <= 2e-6 * reach


def settings() -> dict[str, Callable[[list[Any]], Optimizer]]:
    often = {"relationship_discovery_interval": 3, "warmup_steps": 8, "lr_bump": 1e-4, "max_lr": 1e-2}
    return {
        "adaptive": lambda given: AdaptiveHinaAdamW(given, lr=1e-3, **often),
        "adaptive, everything": lambda given: AdaptiveHinaAdamW(
            given, lr=1e-3, use_orthogonal_grad=True, use_agr=True, use_tam=True, **often
        ),
        "adaptive, legacy": lambda given: AdaptiveHinaAdamW(given, lr=1e-3, legacy=True, **often),
        "hina": lambda given: HinaAdamW(given, lr=1e-3, alora_ratio=16.0),
        "hina, ADOPT": lambda given: HinaAdamW(given, lr=1e-3, use_adopt_stability=True, weight_decay=0.1, dynamic_weight_decay=True),
        "hina, legacy": lambda given: HinaAdamW(given, lr=1e-3, legacy=True),
    }


@pytest.mark.parametrize("named", [True, False], ids=["named", "unnamed"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", settings())
def test_saved_and_loaded_it_goes_on_with_the_same_steps(problem: Any, name: str, dtype: torch.dtype, named: bool) -> None:
    make = settings()[name]

    def new(weights: list[torch.nn.Parameter]) -> Optimizer:
        return make(problem.named(weights) if named else weights)

    straight = problem.weights(dtype)
    expected = list(problem.run(new(straight), straight))[-1]
    halves = problem.weights(dtype)
    first = new(halves)
    list(problem.run(first, halves, range(10)))
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    again = [torch.nn.Parameter(weight.detach().clone()) for weight in halves]
    second = new(again)
    second.load_state_dict(torch.load(file, weights_only=True))
    last = list(problem.run(second, again, range(10, 20)))[-1]
    assert all(map(torch.equal, last, expected))


def test_pairs_are_found_by_name_and_where_there_is_none_by_shape(problem: Any) -> None:
    pairs = {(problem.names[pair.first], problem.names[pair.second]) for pair in by_name(problem.names)}
    layers = ("lora_unet_blk0_attn_to_q", "lora_unet_blk0_attn_to_v", "lora_unet_conv_in")
    assert pairs == {(f"{layer}.lora_down.weight", f"{layer}.lora_up.weight") for layer in layers} | {
        ("lora_unet_proj.lokr_w1", "lora_unet_proj.lokr_w2")
    }
    assert {(0, 1), (2, 3)} == {
        (pair.first, pair.second)
        for pair in by_name(["a.lokr_w1_a", "a.lokr_w2_a", "lora_unet_b.lora_A.weight", "lora_unet_b.lora_B.weight"])
    }
    down, up, stranger = torch.randn(4, 20), torch.randn(9, 4), torch.randn(7, 11)
    found = discover(None, [stranger, down, torch.ones(4), up], 0.1)
    assert [(pair.first, pair.second, pair.kind) for pair in found] == [(1, 3, "product, the other way round")]
    many = discover(None, [torch.ones(2, 3)] * 500, 0.3)  # bounded, and each has one partner
    taken = [place for pair in many for place in (pair.first, pair.second)]
    assert len(taken) == len(set(taken)) <= 64


@pytest.mark.parametrize("scale", [1e-4, 1e4])
def test_the_scale_of_the_loss_changes_nothing(problem: Any, scale: float) -> None:
    def last(factor: float) -> list[torch.Tensor]:
        weights = problem.weights(torch.float64)
        optimizer = AdaptiveHinaAdamW(problem.named(weights), lr=1e-2, eps=1e-30, relationship_discovery_interval=3, max_lr=0.1)
        for step in range(20):
            for name, weight in problem.named(weights):
                weight.grad = problem.gradients[name][step].double() * factor
            optimizer.step()
        return weights

    for one, other in zip(last(1.0), last(scale), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def test_the_mask_raises_steady_rates_lowers_others_and_keeps_its_bounds() -> None:
    steady, erratic = torch.nn.Parameter(torch.ones(50)), torch.nn.Parameter(torch.ones(50))
    optimizer = AdaptiveHinaAdamW(
        [steady, erratic], lr=1e-3, lr_bump=5e-4, max_lr=2e-3, warmup_steps=40, use_dynamic_adaptation=False, use_spd=False
    )
    for step in range(40):
        steady.grad, erratic.grad = torch.ones(50), torch.full((50,), (-1.0) ** step)
        optimizer.step()
    high, low = (float(optimizer.state[weight]["lr_ratio"]) for weight in (steady, erratic))
    assert high == pytest.approx(2.0, rel=1e-2) and low == pytest.approx(0.1, rel=5e-2)
    for _ in range(200):
        steady.grad = torch.ones(50)
        optimizer.step()
    assert 1.8 < float(optimizer.state[steady]["lr_ratio"]) < high  # gently back
    assert optimizer.param_groups[0]["lr"] == 1e-3


def test_a_low_max_lr_does_not_cap_the_rate(caplog: pytest.LogCaptureFixture) -> None:
    weight = torch.nn.Parameter(torch.ones(8))
    optimizer = AdaptiveHinaAdamW([weight], lr=1e-2, use_dynamic_adaptation=False)
    assert "max_lr 0.001 is below the learning rate" in caplog.text
    weight.grad = torch.ones(8)
    optimizer.step()
    assert (1 - weight.detach()).mean().item() == pytest.approx(1e-2, rel=0.1)


def test_what_was_asked_for_wins_over_defaults_and_contradictions_are_refused() -> None:
    weight = [torch.nn.Parameter(torch.ones(2))]
    assert AdaptiveHinaAdamW(weight, use_grams=True).defaults["use_cautious"] is False
    assert HinaAdamW(weight, weight_decay=0.1).defaults["use_spd"] is False
    for clash in (
        {"use_grams": True, "use_cautious": True},
        {"use_spd": True, "weight_decay": 0.1},
        {"use_adopt_stability": True, "use_tam": True},
        {"min_lr": 1.0},
        {"legacy": True, "eight_bit": True},
    ):
        with pytest.raises(ValueError, match=r"contradict|above|leave them out"):
            AdaptiveHinaAdamW(weight, **clash)


@pytest.mark.parametrize("make", [AdaptiveHinaAdamW, HinaAdamW])
def test_reports_answer_before_the_first_step_and_with_empty_groups(problem: Any, make: type[AdaptiveHinaAdamW]) -> None:
    weights = problem.weights()
    optimizer = make(problem.named(weights), lr=1e-3)
    optimizer.add_param_group({"params": [("lora_unet_x.lora_up.weight", torch.nn.Parameter(torch.ones(2)))]})
    names = ("optimization_info", "relationship_summary", "importance_analysis", "lr_mask_analysis", "buffer_pool_stats")
    for steps in (0, 1):
        for name in names:
            json.dumps(getattr(optimizer, f"get_{name}")())
        list(problem.run(optimizer, weights, range(steps)))
    found = optimizer.diagnose_lora_pairing()["groups"]
    assert found["group_0"]["pairs_count"] == 4 and found["group_1"]["unpaired_b"][0]["name"] == "lora_unet_x.lora_up.weight"
    summary = optimizer.get_relationship_summary()
    assert summary["total_relationships"] == 4 and optimizer.get_optimization_info()["training_stats"]["global_step"] == 1
    assert optimizer.clear_buffer_pool() is None
    empty = make([{"params": []}, {"params": weights}])
    assert empty.get_lr_mask_analysis() and empty.get_optimization_info()["total_params"] == 10


def test_state_is_at_most_sixteen_bytes_for_each_weight() -> None:
    down, up = torch.nn.Parameter(torch.randn(16, 256)), torch.nn.Parameter(torch.zeros(256, 16))
    optimizer = AdaptiveHinaAdamW([("a.lora_down.weight", down), ("a.lora_up.weight", up)], lr=1e-3)
    down.grad, up.grad = torch.randn_like(down), torch.randn_like(up)
    optimizer.step()
    assert optimizer.get_optimization_info()["memory_optimization"]["state_bytes_per_param"] <= 10.1


def test_a_step_of_many_tensors_takes_no_more_kernels_than_one_of_few() -> None:
    """Views cost nothing on a device; what is left are its launches."""

    class Kernels(TorchDispatchMode):
        names: list[str]

        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.names.append(str(function))
            return function(*args, **(kwargs or {}))

    def kernels(pairs: int) -> int:
        weights = [torch.nn.Parameter(fill(shape)) for _ in range(pairs) for fill, shape in ((torch.ones, (2, 6)), (torch.zeros, (6, 2)))]
        optimizer = AdaptiveHinaAdamW(weights, lr=1e-3, max_lr=1e-2)
        for _ in range(2):  # the first step makes the state
            for weight in weights:
                weight.grad = torch.ones_like(weight)
            counted = Kernels()
            counted.names = []
            with counted:
                optimizer.step()
        return sum(not name.startswith(("aten.view", "aten._unsafe_view", "aten.select", "aten.unbind")) for name in counted.names)

    assert kernels(20) == kernels(3) <= 80  # a matrix of those with an anchor, and one of those that began as 0


def test_together_or_one_by_one_it_is_the_same_step_also_with_a_closure(problem: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def last() -> list[torch.Tensor]:
        weights = problem.weights(torch.float64)
        return list(problem.run(settings()["adaptive, everything"](problem.named(weights)), weights))[-1]

    together = last()
    monkeypatch.setattr(staged, "_MOST_ON_A_CPU", 1)
    for one, other in zip(last(), together, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)
    weight = torch.nn.Parameter(torch.ones(3))

    def loss() -> torch.Tensor:
        value = weight.square().sum()
        value.backward()
        return value

    assert AdaptiveHinaAdamW([weight], lr=1e-2).step(loss).item() == 3.0 and bool((weight < 1).all())
