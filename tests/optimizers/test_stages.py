"""Each technique alone over AdamW is the paper's, in float64 against oracles that were written from the papers by others."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from musubi_backend.optimizers import stages
from musubi_backend.optimizers.staged import StagedAdamW

EACH: dict[str, dict[str, Any]] = {
    "adamw": {"weight_decay": 0.01},
    "cautious_adamw": {"weight_decay": 0.01, "use_cautious": True},
    "grams_adamw": {"weight_decay": 0.01, "use_grams": True, "eps": 1e-6},
    "adopt": {"weight_decay": 0.01, "use_adopt_stability": True, "betas": (0.9, 0.9999), "eps": 1e-6},
    "agr_adamw": {"weight_decay": 0.01, "use_agr": True},
    "orthograd_adamw": {"weight_decay": 0.01, "use_orthogonal_grad": True},
    "tam_on_adamw_normalised": {"weight_decay": 0.01, "use_tam": True},
    "adamspd_anchor_init": {"use_spd": True, "spd_lambda": 1.0, "spd_anchor": "start"},
    "adamspd_anchor_zero": {"use_spd": True, "spd_lambda": 1.0, "spd_anchor": "zero"},
}


@pytest.mark.parametrize("name", EACH)
def test_a_stage_is_the_papers(problem: Any, name: str) -> None:
    weights = problem.weights(torch.float64)
    _, golden = problem.golden(f"paper/{name}")
    optimizer = StagedAdamW(weights, lr=0.01, **EACH[name])
    assert problem.furthest(problem.run(optimizer, weights), golden) <= 1e-12
    single = problem.weights()
    assert problem.furthest(problem.run(StagedAdamW(single, lr=0.01, **EACH[name]), single), golden) <= 2e-6


def test_stages_compose_in_their_order(problem: Any) -> None:
    weights = problem.weights(torch.float64)
    optimizer = StagedAdamW(weights, lr=0.01, use_agr=True, use_orthogonal_grad=True, use_cautious=True, use_spd=True, spd_lambda=1.0)
    expected = [weight.detach().clone() for weight in weights]
    anchors, first, second = [w.clone() for w in expected], [w * 0 for w in expected], [w * 0 for w in expected]
    for step, after in enumerate(problem.run(optimizer, weights), 1):
        for index, name in enumerate(problem.names):
            raw, weight, anchor = problem.gradients[name][step - 1].double(), expected[index], anchors[index]
            grad = raw * (1 - raw.abs() / raw.abs().sum().clamp_min(1e-30))
            along = grad - (weight * grad).sum() / ((weight * weight).sum() + 1e-30) * weight
            grad = along * grad.norm() / (along.norm() + 1e-30)
            first[index] = 0.9 * first[index] + 0.1 * grad
            second[index] = 0.999 * second[index] + 0.001 * grad**2
            update = first[index] / (1 - 0.9**step) / ((second[index] / (1 - 0.999**step)).sqrt() + 1e-8)
            mask = (update * grad > 0).double()
            moved = weight - 0.01 * update * mask / mask.mean().clamp_min(1e-3)
            if (raw * (weight - anchor)).sum() > 0:
                near, far = (weight - anchor).norm(), (moved - anchor).norm()
                moved = moved - ((far - near) / far).clamp(0, 1) * (moved - anchor)
            expected[index] = moved
            assert (after[index] - moved).abs().max() <= 1e-12


def test_what_the_stages_promise() -> None:
    chance = torch.Generator().manual_seed(1)
    weights, grads = torch.randn(10, 60, generator=chance), torch.randn(10, 60, generator=chance)
    orthogonal = stages.orthogonal_gradients(grads, weights)
    assert (stages.dots(orthogonal, weights).abs() <= 1e-5 * stages.norms(grads) * stages.norms(weights)).all()
    torch.testing.assert_close(stages.norms(orthogonal), stages.norms(grads))
    careful, signed = weights.clone(), weights.clone()
    stages.cautious(careful, grads)
    assert (careful * grads >= 0).all()
    stages.grams(signed, grads)
    assert signed.sign().equal(grads.sign())
    free = weights - 0.3 * grads
    pulled = weights.clone()
    stages.project(pulled, None, grads, grads, 0.3, 1.0)
    assert (stages.norms(pulled) <= stages.norms(free) + 1e-6).all() and not pulled.equal(free)
    assert [stages.dynamic_weight_decay(step, 100, 0.5, 0.3) for step in (1, 100, 150, 10_000)] == [1.0, 1.0, 0.5**0.5, 0.3]


@pytest.mark.parametrize(
    "stage",
    [{"use_cautious": True, "use_grams": True}, {"use_adopt_stability": True, "use_tam": True}, {"use_spd": True, "weight_decay": 0.1}],
    ids=lambda stage: "+".join(stage),
)
def test_stages_that_contradict_each_other_are_rejected_in_words(stage: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=" contradict each other: "):
        StagedAdamW([torch.nn.Parameter(torch.ones(2))], **stage)


def test_a_step_waits_for_no_number_and_takes_every_kind_of_weight() -> None:
    from torch.utils._python_dispatch import TorchDispatchMode

    class Waits(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.count += "_local_scalar_dense" in str(function)
            return function(*args, **(kwargs or {}))

    weights = [
        torch.nn.Parameter(torch.randn(shape, dtype=dtype))
        for shape in ((4, 6), (3,), (), (2, 3, 1, 1))
        for dtype in (torch.float32, torch.bfloat16)
    ]
    everything = {"use_agr": True, "use_orthogonal_grad": True, "use_tam": True, "use_cautious": True, "use_spd": True}
    optimizer = StagedAdamW([{"params": weights[:2]}, {"params": weights[2:]}, {"params": []}], lr=0.1, **everything)
    for weight in weights[1:]:
        weight.grad = torch.randn(weight.mT.shape).mT.to(weight.dtype) if weight.ndim == 2 else torch.randn_like(weight)
    before = [weight.detach().clone() for weight in weights]
    optimizer.step()
    moved = [not torch.equal(weight, was) for weight, was in zip(weights, before, strict=True)]
    assert moved == [weight.grad is not None and weight.ndim > 0 for weight in weights]  # of a single number AGR leaves nothing
    with Waits() as waits:
        optimizer.step()
    assert waits.count == 0
    assert optimizer.state[weights[1]]["exp_avg"].dtype == torch.float32  # of a bfloat16 weight


def test_the_order_of_weights_changes_nothing(problem: Any) -> None:
    def run(order: list[int]) -> dict[int, torch.Tensor]:
        weights = problem.weights()
        optimizer = StagedAdamW([weights[index] for index in order], lr=0.01, use_cautious=True, use_spd=True, use_tam=True)
        last = list(problem.run(optimizer, weights))[-1]
        return dict(enumerate(last))

    there, back = run(list(range(10))), run(list(reversed(range(10))))
    assert all(torch.equal(there[index], back[index]) for index in there)


def test_bfloat16_weights_follow_updates_below_their_resolution() -> None:
    """2000 updates of a hundredth of the resolution: rounded to the nearest nothing moves, by chance they arrive."""

    def moved(by_chance: bool) -> float:
        weight = torch.nn.Parameter(torch.ones(512, dtype=torch.bfloat16))
        optimizer = StagedAdamW([weight], lr=4e-5, stochastic_rounding=by_chance)
        for _ in range(100):
            weight.grad = torch.ones_like(weight)
            optimizer.step()
        return 1 - weight.detach().float().mean().item()

    assert moved(False) == 0.0
    assert moved(True) == pytest.approx(100 * 4e-5, rel=0.25)


def test_a_compiled_step_is_the_same_step(problem: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(torch, "compile", lambda function: asked.append(function) or (lambda *given: function(*given)))
    plain, compiled = problem.weights(torch.float64), problem.weights(torch.float64)
    last = list(problem.run(StagedAdamW(plain, lr=0.01), plain))[-1]
    again = list(problem.run(StagedAdamW(compiled, lr=0.01, compile_step=True), compiled))[-1]
    assert asked == [stages.adam]
    for one, other in zip(last, again, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)
