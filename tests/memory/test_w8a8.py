"""Products in 8 bits: exact where nothing is lost by rounding, close elsewhere, forward and backward from the same stored weight."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from counted_kernels import gpu_models
from musubi_backend.errors import UserError
from musubi_backend.layers.blocks import run_block
from musubi_backend.layers.linear import Linear
from musubi_backend.lora.modules import LoRA
from musubi_backend.memory.w8a8 import FORMATS, W8A8Linear, check_products
from torch import Tensor, nn

CPU = torch.device("cpu")


def held(weight: Tensor, bias: Tensor | None, name: str) -> W8A8Linear:
    linear = W8A8Linear(weight.shape[1], weight.shape[0], bias is not None, FORMATS[name])
    linear.weight = nn.Parameter(linear.take(weight, None, CPU), requires_grad=False)
    if bias is not None:
        linear.bias = nn.Parameter(bias, requires_grad=False)
    return linear


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def whole(*shape: int, seed: int, largest: int = 127) -> Tensor:
    """Whole numbers up to `largest`, which is in every row and column."""
    numbers = torch.randint(-largest, largest + 1, shape, generator=torch.Generator().manual_seed(seed)).float()
    numbers.diagonal().fill_(largest)
    return numbers


def test_int8_products_of_whole_numbers_are_exact_in_both_directions() -> None:
    weight, bias, x, gradient = whole(32, 32, seed=0), draw(32, seed=1), whole(32, 32, seed=2), whole(32, 32, seed=3)
    linear = held(weight, bias, "int8")
    assert linear.weight.dtype == torch.int8 and torch.equal(linear.dense(torch.float32), weight)
    out = linear(x.requires_grad_())
    torch.testing.assert_close(out, x @ weight.T + bias, rtol=1e-6, atol=0)
    out.backward(gradient)
    torch.testing.assert_close(x.grad, gradient @ weight, rtol=1e-6, atol=0)


@pytest.mark.parametrize(("name", "limit"), [("int8", 0.02), ("fp8", 0.06)])
def test_channels_and_rows_of_any_size_lose_little_and_a_lora_gets_its_gradients(name: str, limit: float) -> None:
    channels, rows = torch.logspace(-3, 3, 48)[:, None], torch.logspace(-4, 3, 40)[:, None]
    weight, x, gradient = draw(48, 64, seed=0) * channels, draw(40, 64, seed=1) * rows, draw(40, 48, seed=2) / channels.T
    found, expected = held(weight, None, name), Linear(64, 48, bias=False).requires_grad_(False)
    expected.weight.copy_(weight)
    module = LoRA(64, 48, 4, 2.0)
    nn.init.normal_(module.lora_up.weight, std=1e-3)
    results = []
    for linear in (found, expected):
        linear.attach(module)
        module.zero_grad()
        given = x.detach().clone().requires_grad_()
        out = linear(given)
        out.backward(gradient)
        results.append((out.detach(), given.grad, module.lora_down.weight.grad, module.lora_up.weight.grad))
    (out, for_x, *of_lora), (out_exact, for_x_exact, *of_lora_exact) = results
    assert 1e-3 < float((out / channels.T - out_exact / channels.T).norm(dim=1).div((out_exact / channels.T).norm(dim=1)).max()) < limit
    assert 1e-3 < float((for_x - for_x_exact).norm() / for_x_exact.norm()) < limit
    for one, other in zip(of_lora, of_lora_exact, strict=True):  # they depend on neither product
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rows", [1, 16])
def test_few_rows_and_odd_sizes_are_multiplied_in_full(rows: int) -> None:
    for size in (64, 60):
        linear, x = held(draw(32, size, seed=0), None, "int8"), draw(rows + (size == 60) * 20, size, seed=1).requires_grad_()
        out = linear(x)
        torch.testing.assert_close(out, x @ linear.dense(torch.float32).T)
        out.sum().backward()
        torch.testing.assert_close(x.grad, linear.dense(torch.float32).sum(0).expand_as(x))


def _see(seen: list[tuple[Any, ...]], _: nn.Module, given: tuple[Any, ...]) -> None:
    seen.append(given)


@pytest.mark.parametrize(("name", "limit"), [("int8", 0.03), ("fp8", 0.09)])
def test_checkpointed_blocks_of_a_model_stay_close(name: str, limit: float) -> None:
    """Output and input's gradient of a block of each kind, against float32."""
    for model in gpu_models.SMALL:
        exact = gpu_models.build(model, gpu_models.Setting(), CPU, torch.float32)
        small = gpu_models.build(model, gpu_models.Setting(w8a8=name), CPU, torch.float32)
        seen: list[tuple[Any, ...]] = []
        lists: Any = exact.model.block_lists(), small.model.block_lists()  # type: ignore[operator]
        handles = [blocks[0].register_forward_pre_hook(partial(_see, seen)) for blocks in lists[0]]
        with torch.no_grad():
            exact.loss(*gpu_models.latents(gpu_models.SMALLEST, CPU), 0.5)
        for handle in handles:
            handle.remove()
        for number, (x, *shared) in enumerate(seen):
            results = []
            for blocks in lists:
                given = x.detach().clone().requires_grad_()
                out = run_block(blocks[number][0], given, *shared, recompute=True)
                out.square().sum().backward()
                results.append((out.detach() - x, given.grad))
            for expected, found in zip(*results, strict=True):
                assert 1e-4 < float((found - expected).norm() / expected.norm()) < limit, (model.name, number)


def test_a_planned_one_has_the_shapes_of_a_real_one() -> None:
    with torch.device("meta"):
        linear = W8A8Linear(64, 32, True, torch.int8).requires_grad_(False)
        linear.weight = nn.Parameter(torch.empty(32, 64, dtype=linear.dtype_of(torch.bfloat16)), requires_grad=False)
        x = torch.empty(2, 20, 64, dtype=torch.bfloat16, requires_grad=True)
        out = linear(x)
        out.sum().backward()
    assert out.shape == (2, 20, 32) and out.dtype == torch.bfloat16 and x.grad is not None and x.grad.shape == x.shape


def test_a_gpu_that_cannot_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 6))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "RTX 3090")
    check_products("int8", torch.device("cuda"))
    with pytest.raises(UserError, match=r"--w8a8 fp8 needs a GPU that multiplies fp8 .* RTX 3090 does not"):
        check_products("fp8", torch.device("cuda"))
