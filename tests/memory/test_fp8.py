"""fp8 weights: the recorded quantisation of musubi-tuner, every layout of files, and gradients through them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from musubi_backend.lora.modules import LoRA
from musubi_backend.memory.fp8 import BLOCK, Fp8Linear, hold_in_fp8, quantise
from musubi_backend.weights.safetensors_file import load
from musubi_backend.weights.scales import dequantised
from torch import Tensor, nn


@pytest.fixture(scope="module")
def recorded(shared: Path) -> dict[str, Tensor]:
    return load(shared / "golden" / "fp8" / "fp8_scaled.safetensors")


@pytest.mark.parametrize(
    ("case", "scaling"),
    [
        ("block64_bf16", "block"),
        ("block64_fp32", "block"),
        ("block64_fp16", "block"),
        ("fallback_channel_bf16", "block"),
        ("tensor_bf16", "tensor"),
    ],
)
def test_quantised_weights_and_scales_are_the_recorded_ones(recorded: dict[str, Tensor], case: str, scaling: str) -> None:
    stored, scale = quantise(recorded[f"{case}.weight"], scaling)  # type: ignore[arg-type]
    assert torch.equal(stored.float(), recorded[f"{case}.q"].float())
    assert torch.equal(scale, recorded[f"{case}.scale_stored"])
    assert scale.shape == recorded[f"{case}.scale_stored"].shape


@pytest.mark.parametrize("kind", ["bf16", "fp32"])
def test_products_are_the_recorded_ones(recorded: dict[str, Tensor], kind: str) -> None:
    tensors = {name.removeprefix(f"linear_{kind}."): tensor for name, tensor in recorded.items() if name.startswith(f"linear_{kind}.")}
    exact = {"rtol": 1e-5, "atol": 1e-5} if kind == "fp32" else {"rtol": 1e-2, "atol": 1e-2}  # other processors round bf16 in another order
    for layer, x, y in (("blocks.0", "x", "y_fp8"), ("blocks.1", "x2", "y2_fp8")):
        weight, bias = tensors[f"in.{layer}.weight"], tensors.get(f"in.{layer}.bias")
        linear = _filled(weight, bias)
        assert torch.equal(linear.weight.float(), tensors[f"opt.{layer}.weight"].float())
        torch.testing.assert_close(linear(tensors[x]), tensors[y], **exact)


def test_fp8_loses_what_fp8_loses() -> None:
    weight = torch.randn(40, 4 * BLOCK, generator=torch.Generator().manual_seed(0)) * torch.logspace(-2, 2, 40)[:, None]
    for scaling, limit in (("block", 0.04), ("tensor", 0.25)):
        stored, scale = quantise(weight, scaling)  # type: ignore[arg-type]
        error = (dequantised(stored, scale, torch.float32) - weight).norm(dim=1) / weight.norm(dim=1)
        assert error.max() < limit, scaling
    stored, _ = quantise(torch.tensor([[1e3, 1e-6]]), "none")
    assert stored.tolist() == [[448.0, 0.0]]


def test_scales_of_any_precision_multiply_exactly_enough() -> None:
    """A float32 scale on bf16 weights must not be rounded to bf16 first."""
    weight = torch.full((4, 128), 1.0).to(torch.float8_e4m3fn)
    for scale in (torch.tensor(1.00390625), torch.full((4, 1), 1.00390625), torch.full((4, 2, 1), 1.00390625)):
        assert dequantised(weight, scale, torch.float32).unique().tolist() == [1.00390625]
        assert dequantised(weight, scale, torch.bfloat16).dtype == torch.bfloat16
    assert dequantised(torch.full((1, 1), 3.0).to(torch.float8_e5m2), torch.tensor([[1.00390625]]), torch.bfloat16).item() == 3.015625


@pytest.mark.parametrize("with_lora", [False, True])
def test_gradients_are_those_of_the_dense_weight_and_no_dense_weight_is_kept(with_lora: bool) -> None:
    generator = torch.Generator().manual_seed(1)
    linear = _filled(torch.randn(24, 2 * BLOCK, generator=generator), torch.randn(24, generator=generator).double())
    module = LoRA(2 * BLOCK, 24, 4, 2.0).double()
    nn.init.normal_(module.lora_up.weight, generator=generator)
    linear.attach(module if with_lora else None)
    x = torch.randn(2, 5, 2 * BLOCK, generator=generator).double().requires_grad_()  # double: sums in another order must not matter

    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.numel()) or tensor, lambda tensor: tensor):
        out = linear(x)
    assert max(kept, default=0) < linear.weight.numel()
    out.square().sum().backward()
    found = [x.grad, *(parameter.grad for parameter in module.parameters())]

    dense = linear.dense(torch.float64)
    again = x.detach().requires_grad_()
    module.zero_grad()
    delta = module.scale * module.lora_up.weight @ module.lora_down.weight if with_lora else 0
    expected = nn.functional.linear(again, dense + delta, linear.bias)
    torch.testing.assert_close(out, expected)
    expected.square().sum().backward()
    for one, other in zip(found, [again.grad, *(parameter.grad for parameter in module.parameters())], strict=True):
        torch.testing.assert_close(one, other)


def test_fast_products_are_close_and_odd_sizes_take_the_ordinary_way() -> None:
    generator = torch.Generator().manual_seed(2)
    weight, bias = torch.randn(32, 64, generator=generator), torch.randn(32, generator=generator)
    x = torch.randn(3, 7, 64, generator=generator) * torch.logspace(-4, 3, 7)[None, :, None]
    expected = nn.functional.linear(x, weight)
    with torch.no_grad():
        fast = _filled(weight, bias, scaling="tensor", fast=True)
        error = (fast(x) - bias - expected).norm(dim=-1) / expected.norm(dim=-1)
        assert 1e-3 < error.max() < 0.15  # each row has its own scale; above zero, or nothing was rounded
        odd = _filled(weight[:, :60], bias, scaling="tensor", fast=True)
        torch.testing.assert_close(odd(x[..., :60]), nn.functional.linear(x[..., :60], odd.dense(torch.float32), bias))


def test_a_state_dict_takes_the_scale_along() -> None:
    linear = _filled(torch.randn(8, 64), torch.randn(8))
    other = Fp8Linear(64, 8).requires_grad_(False)
    other.weight.data = torch.empty(8, 64, dtype=torch.float8_e4m3fn)
    other.load_state_dict(linear.state_dict())
    x = torch.randn(3, 64)
    assert torch.equal(other(x), linear(x))


def test_linears_are_replaced_by_path_and_nothing_else() -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 8, bias=False), nn.LayerNorm(8)))
    hold_in_fp8(model, ["1.0"], "none")
    assert isinstance(model[1][0], Fp8Linear)
    assert model[1][0].bias is None
    assert type(model[0]) is nn.Linear


def _filled(weight: Tensor, bias: Tensor | None, **settings: object) -> Fp8Linear:
    out_features, in_features = weight.shape
    linear = Fp8Linear(in_features, out_features, bias is not None, **settings).requires_grad_(False)  # type: ignore[arg-type]
    stored, scale = linear.stored(weight, None)
    linear.weight = nn.Parameter(stored, requires_grad=False)
    linear.scale_weight = scale
    if bias is not None:
        linear.bias = nn.Parameter(bias, requires_grad=False)
    return linear
