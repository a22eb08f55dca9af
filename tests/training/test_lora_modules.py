"""A LoRA's dropouts, scale, norm and optimizer groups, in numbers; what merging a file adds, with alphas of every sign."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from musubi_backend.architectures.wan.card import CARD
from musubi_backend.architectures.wan.model import WanGeometry, WanTransformer
from musubi_backend.layers.linear import Linear
from musubi_backend.lora.delta import delta, merged, merged_bias, rows_of
from musubi_backend.lora.expert_networks import ExpertNetworks
from musubi_backend.lora.modules import LoKr, LoRA
from musubi_backend.lora.network import LoRANetwork, ranks_from_weights
from torch import Tensor

RANK, ALPHA = 4, 6.0


def filled(bias: bool = True) -> tuple[Linear, LoRA]:
    torch.manual_seed(0)
    linear, module = Linear(12, 20, bias=bias), LoRA(12, 20, RANK, ALPHA)
    torch.nn.init.normal_(module.lora_up.weight)
    linear.attach(module)
    module.train()
    return linear, module


def added(linear: Linear, x: Tensor) -> Tensor:
    return linear(x) - F.linear(x, linear.weight, linear.bias)


@pytest.mark.parametrize("bias", [True, False])
def test_what_is_added_is_alpha_by_rank_times_up_times_down(bias: bool) -> None:
    linear, module = filled(bias)
    x = torch.randn(3, 5, 12)
    by_hand = ALPHA / RANK * (x @ module.lora_down.weight.T @ module.lora_up.weight.T)
    torch.testing.assert_close(added(linear, x), by_hand, rtol=1e-4, atol=1e-5)


def test_rank_dropout_drops_ranks_of_each_sample_and_scales_the_others_up() -> None:
    linear, module = filled()
    module.rank_dropout = 0.75
    x = torch.randn(64, 3, 12)
    per_rank = torch.einsum("bti,ri,or->btor", x, module.lora_down.weight, module.lora_up.weight) * (ALPHA / RANK)
    got = added(linear, x).flatten(1)
    # which ranks each sample kept, solved from what was added; kept ones count fourfold
    kept = torch.stack([torch.linalg.lstsq(one.flatten(0, 1), out).solution for one, out in zip(per_rank, got, strict=True)])
    torch.testing.assert_close(kept, 4 * (kept > 2).float(), rtol=0, atol=1e-2)
    assert 0.15 < float((kept > 2).float().mean()) < 0.35 and len({tuple(row) for row in (kept > 2).tolist()}) > 4


def test_dropout_drops_single_activations_and_scales_the_others_up() -> None:
    _, module = filled()
    module.dropout = 0.5
    before = torch.randn(200, RANK)
    hidden, factor = module.dropped(before)
    ratio = hidden / before
    assert torch.isclose(ratio, ratio.round(), atol=1e-3).all() and set(ratio.round().unique().tolist()) == {0.0, 2.0}
    assert 0.4 < float((ratio > 1).float().mean()) < 0.6 and factor == 1
    module.eval()
    assert torch.equal(module.dropped(before)[0], before)


def test_the_alpha_of_a_loaded_file_sets_the_scale_and_0_means_the_rank() -> None:
    linear, module = filled()
    x = torch.randn(2, 12)
    before = added(linear, x)
    module.load_state_dict({**module.state_dict(), "alpha": torch.tensor(-3.0)})
    torch.testing.assert_close(added(linear, x), before * (-3.0 / ALPHA), rtol=1e-4, atol=1e-5)
    assert LoRA(12, 20, RANK, 0).scale == 1 and LoRA(12, 20, RANK, 0).alpha.item() == RANK


def test_a_whole_lokr_has_scale_1_whatever_its_alpha() -> None:
    assert LoKr(16, 16, 2, 1.0).whole and not LoKr(16, 16, 1, 1.0).whole
    module = LoKr(16, 16, 2, 1.0)
    module.load_state_dict({**module.state_dict(), "alpha": torch.tensor(8.0)})
    assert module.scale == 1


def test_norm_and_shrinking_are_of_the_scaled_delta() -> None:
    _, module = filled()
    whole = delta(dict(module.state_dict())).clone()
    torch.testing.assert_close(whole, ALPHA / RANK * (module.lora_up.weight @ module.lora_down.weight))
    assert module.delta_norm().item() == pytest.approx(whole.norm().item(), rel=1e-5)
    with torch.no_grad():
        module.shrink(0.3)
    torch.testing.assert_close(delta(dict(module.state_dict())), 0.3 * whole)


def network(**more: object) -> LoRANetwork:
    model = WanTransformer(WanGeometry(dim=32, ffn_dim=64, num_heads=2, num_layers=1, text_dim=32))
    return LoRANetwork.create(model, CARD, **more)  # type: ignore[arg-type]


def test_lora_plus_trains_the_up_weights_faster() -> None:
    lora = network(network_args=["loraplus_lr_ratio=16"])
    slow, fast = lora.parameter_groups(0.5)
    assert slow["lr"] == 0.5 and fast["lr"] == 8
    names = {id(parameter): name for name, parameter in lora.named_parameters()}
    assert all("lora_down" in names[id(one)] for one in slow["params"]) and all("lora_up" in names[id(one)] for one in fast["params"])


def test_sizes_without_settings_are_rank_4_and_alpha_1_and_a_file_says_its_own() -> None:
    state = network().state_dict()
    assert state["lora_unet_blocks_0_ffn_0.lora_down.weight"].shape[0] == 4 and state["lora_unet_blocks_0_ffn_0.alpha"] == 1
    with_alpha = {"a.lora_down.weight": torch.zeros(8, 3), "a.alpha": torch.tensor(2.5), "b.lora_down.weight": torch.zeros(6, 3)}
    assert ranks_from_weights(with_alpha) == {"a": (8, 2.5), "b": (6, 6.0)}


def test_excluded_layers_that_are_included_again_come_back_by_their_whole_name() -> None:
    lora = network(network_args=["exclude_patterns=['.*']", "include_patterns=[r'blocks\\.0\\.ffn\\.0', r'blocks']"])
    assert set(lora.targets.values()) == {"blocks.0.ffn.0"}


def test_only_norms_above_the_limit_are_brought_down_to_it() -> None:
    lora = network(rank=2, network_args=["exclude_patterns=['.*']", "include_patterns=[r'.*ffn.*']"])
    wanted = [3.0, 0.2]
    with torch.no_grad():
        for module, norm in zip(lora.lora_modules(), wanted, strict=True):
            module.lora_up.weight.normal_()
            module.shrink(norm / module.delta_norm().item())
    report = lora.apply_max_norm(1.0)
    assert [module.delta_norm().item() for module in lora.lora_modules()] == pytest.approx([1.0, 0.2], rel=1e-4)
    assert report.keys_scaled == 1 and (report.mean_norm, report.max_norm) == pytest.approx((0.6, 1.0), rel=1e-4)
    pair = ExpertNetworks({"low": lora, "high": network(rank=2)})
    both = pair.apply_max_norm(0.5)
    count = len(lora.targets) + len(pair.parts["high"].targets)
    assert (both.keys_scaled, both.mean_norm, both.max_norm) == (1, pytest.approx(0.7 / count, rel=1e-4), pytest.approx(0.5, rel=1e-4))


@pytest.mark.parametrize("alpha", [6.0, -6.0, None])
@pytest.mark.parametrize("kind", ["LoRA", "LoHa", "LoKr"])
def test_merging_adds_multiplier_times_scale_times_the_product(kind: str, alpha: float | None) -> None:
    torch.manual_seed(0)
    if kind == "LoRA":
        parts = {"lora_up.weight": torch.randn(6, 2), "lora_down.weight": torch.randn(2, 4)}
        product = parts["lora_up.weight"] @ parts["lora_down.weight"]
    elif kind == "LoHa":
        parts = {f"hada_w{n}_{s}": torch.randn(*shape) for n in "12" for s, shape in (("a", (6, 2)), ("b", (2, 4)))}
        product = (parts["hada_w1_a"] @ parts["hada_w1_b"]) * (parts["hada_w2_a"] @ parts["hada_w2_b"])
    else:
        parts = {"lokr_w1": torch.randn(2, 2), "lokr_w2_a": torch.randn(3, 2), "lokr_w2_b": torch.randn(2, 2)}
        product = torch.kron(parts["lokr_w1"], parts["lokr_w2_a"] @ parts["lokr_w2_b"])
    if alpha is not None:
        parts["alpha"] = torch.tensor(alpha)
    weight, scale = torch.randn(6, 4), 1.0 if alpha is None else alpha / 2
    torch.testing.assert_close(merged(weight, parts, 0.7, "x"), weight + 0.7 * scale * product)
    rows = rows_of(parts, 2, 5)
    if kind == "LoKr":
        assert rows is None
    else:
        assert rows is not None
        torch.testing.assert_close(delta(rows), scale * product[2:5])


def test_rows_of_a_dora_whose_norms_reach_across_all_rows_are_not_apart() -> None:
    factors = {"lora_up.weight": torch.ones(4, 1), "lora_down.weight": torch.ones(1, 3)}
    assert rows_of({**factors, "dora_scale": torch.ones(1, 3)}, 0, 2) is None
    rows = rows_of({**factors, "dora_scale": torch.arange(4.0)[:, None]}, 1, 3)
    assert rows is not None and rows["dora_scale"].flatten().tolist() == [1, 2] and len(rows["lora_up.weight"]) == 2


def test_biases_take_the_multiplier_and_results_the_wider_dtype() -> None:
    parts = {"diff": torch.ones(2, 3), "diff_b": torch.tensor([1.0, 2.0])}
    assert merged_bias(torch.tensor([0.5, 0.5]), parts, 0.5).tolist() == [1.0, 1.5]
    assert merged_bias(torch.tensor([0.5, 0.5]), {}, 0.5).tolist() == [0.5, 0.5]
    assert merged(torch.zeros(2, 3), parts, 0.25, "x").tolist() == [[0.25] * 3] * 2
    half = {"lora_up.weight": torch.ones(2, 1), "lora_down.weight": torch.ones(1, 3)}
    assert merged(torch.zeros(2, 3, dtype=torch.float16), half, 1.0, "x").dtype == torch.float32
    eight = torch.ones(2, 3).to(torch.float8_e4m3fn)
    result = merged(eight, half, 1.0, "x")
    assert result.dtype == torch.float16 and result.tolist() == [[2.0] * 3] * 2
