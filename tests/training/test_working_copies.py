"""Factors that are cast once for a step give the gradients of factors that are cast at each use."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from musubi_backend.layers.linear import Linear
from musubi_backend.lora.expert_networks import ExpertNetworks
from musubi_backend.lora.modules import LoHa, LoRA
from musubi_backend.lora.network import LoRANetwork, NetworkOptions
from musubi_backend.lora.working import WorkingCopies
from torch import Tensor, nn

BF16 = torch.bfloat16
Network = LoRANetwork | ExpertNetworks


def network(alpha: float = 2.0, kind: type = LoRA) -> tuple[list[Linear], LoRANetwork]:
    torch.manual_seed(0)
    linears, made = [Linear(12, 12).to(BF16).requires_grad_(False) for _ in range(2)], LoRANetwork(NetworkOptions())
    for number, linear in enumerate(linears):
        module = kind(12, 12, 4, alpha)
        linear.attach(module)
        made.add_module(str(number), module)
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.3)
    return linears, made.train()


def gradients(linears: list[Linear], whole: nn.Module, during: Callable[[], object], steps: int = 1) -> list[Tensor | None]:
    torch.manual_seed(1)
    for _ in range(steps):
        with during():  # type: ignore[attr-defined]
            x = torch.randn(5, 12, dtype=BF16)
            for linear in linears:
                x = linear(x)
            x.float().square().sum().backward()
    return [parameter.grad for parameter in whole.parameters()]


@contextmanager
def plain() -> Iterator[None]:
    yield


@pytest.mark.parametrize("kind", [LoRA, LoHa])
@pytest.mark.parametrize("steps", [1, 2], ids=["one pass", "two passes"])
def test_gradients_are_the_same_bits(kind: type, steps: int) -> None:
    expected = gradients(*network(kind=kind), plain, steps)
    linears, made = network(kind=kind)
    got = gradients(linears, made, lambda: made.working_in(BF16), steps)
    assert all(
        a is not None and b is not None and a.dtype == torch.float32 and torch.equal(a, b) for a, b in zip(expected, got, strict=True)
    )


def test_a_scale_that_is_no_power_of_two_differs_by_rounding() -> None:
    expected = gradients(*network(3.0), plain)
    linears, made = network(3.0)
    got = gradients(linears, made, lambda: made.working_in(BF16))
    for one, other in zip(expected, got, strict=True):
        assert one is not None and other is not None
        assert 0 <= float((one - other).norm() / one.norm()) < 2**-6


def test_what_the_optimizer_changed_is_used_in_the_next_pass_and_what_is_left_teaches_nothing() -> None:
    linears, made = network()
    with pytest.raises(KeyboardInterrupt), made.working_in(BF16):
        linears[0](torch.ones(1, 12, dtype=BF16)).sum().backward()
        raise KeyboardInterrupt
    assert all(parameter.grad is None for parameter in made.parameters())
    x = torch.ones(1, 12, dtype=BF16)
    with made.working_in(BF16), torch.no_grad():
        before = linears[0](x)
    for parameter in made.parameters():
        parameter.data = parameter.data * 2  # as optimizers do that write past autograd
    with made.working_in(BF16), torch.no_grad():
        after = linears[0](x)
    assert torch.equal(after, linears[0](x)) and not torch.equal(after, before)


def test_a_module_that_was_left_out_gets_no_gradient_and_both_experts_get_theirs() -> None:
    (first, second), (one, other) = zip(network(), network(), strict=True)
    one.get_submodule("1").module_dropout = 1.0  # type: ignore[assignment]
    both = ExpertNetworks({"low": one, "high": other})
    got = gradients([*first, *second], SimpleNamespace(parameters=both.parameters), lambda: both.working_in(BF16))  # type: ignore[arg-type]
    assert [gradient is None for gradient in got] == [False, False, True, True, False, False, False, False]


def test_a_training_in_16_bits_steps_with_them(project: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two accumulated passes for each of two steps."""
    gathered = []
    original = WorkingCopies.gather
    monkeypatch.setattr(WorkingCopies, "gather", lambda copies: gathered.append(copies.copies[0].dtype) or original(copies))
    project.train("out", max_train_steps=2, gradient_accumulation_steps=2, mixed_precision="bf16")
    assert gathered == [BF16] * 4
