"""Attention whose output is kept runs once, and the gradients are those of plain checkpointing to the last bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from musubi_backend.layers.blocks import KeptAttention
from musubi_backend.layers.recompute import Tier, once, recomputed
from recorded_models import EVERY, inputs, loaded, with_lora
from torch import Tensor


class Step(NamedTuple):
    gradients: list[Tensor]
    attentions: int


@pytest.fixture
def count_attention(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Shapes of the queries of every attention of tokens to themselves."""
    ran: list[tuple[int, ...]] = []
    original = F.scaled_dot_product_attention

    def counted(q: Tensor, k: Tensor, v: Tensor, *more: Any, **named: Any) -> Tensor:
        if k.shape == q.shape:
            ran.append(tuple(q.shape))
        return original(q, k, v, *more, **named)

    monkeypatch.setattr(F, "scaled_dot_product_attention", counted)
    return ran


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("name", EVERY)
def test_no_attention_runs_twice_and_no_bit_changes(
    name: str, dtype: torch.dtype, shared: Path, count_attention: list[tuple[int, ...]]
) -> None:
    case, golden = EVERY[name], shared / "golden" / "dit"
    model = loaded(case, golden).to(dtype).requires_grad_(False)
    network, given = with_lora(model, case, golden), inputs(case, golden)
    model.gradient_checkpointing = True

    def step(kept: KeptAttention) -> Step:
        count_attention.clear()
        model.kept_attention = kept
        network.zero_grad()
        model(*given).square().mean().backward()
        return Step([parameter.grad.clone() for parameter in network.parameters() if parameter.grad is not None], len(count_attention))

    again = sum(map(len, model.block_lists())) - 1
    plain, some, all_of_them = step(KeptAttention()), step(KeptAttention(1, 0)), step(KeptAttention(0, 1000))
    assert (plain.attentions - some.attentions, plain.attentions - all_of_them.attentions) == (1, again)
    for one in (some, all_of_them):
        assert all(map(torch.equal, one.gradients, plain.gradients)) and len(one.gradients) == len(plain.gradients) > 0


def test_the_last_blocks_keep_theirs_on_the_device_and_those_before_them_in_system_ram() -> None:
    tiers = [KeptAttention(1, 2).tier(following) for following in (3, 2, 1, 0)]
    assert tiers == [Tier.RECOMPUTED, Tier.IN_RAM, Tier.IN_RAM, Tier.ON_DEVICE]


@pytest.mark.parametrize(("function", "runs"), [(torch.sigmoid, 1), (lambda x: x.sin().cos().sin().exp(), 2)], ids=["little", "much"])
def test_a_result_is_kept_where_backward_needs_little_besides(function: Callable[[Tensor], Tensor], runs: int) -> None:
    ran = []

    def counted(x: Tensor) -> Tensor:
        ran.append(1)
        return function(x)

    x = torch.linspace(-1, 1, 6).requires_grad_()
    recomputed(lambda x: once(counted, x * 2).square(), x, tier=Tier.ON_DEVICE).sum().backward()
    again = x.detach().clone().requires_grad_()
    function(again * 2).square().sum().backward()
    assert len(ran) == runs and torch.equal(x.grad, again.grad)  # type: ignore[arg-type]
