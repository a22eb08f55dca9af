"""LoHa and LoKr: their files are musubi-tuner's, what they add is their delta, and they train, drop, shrink and load as a LoRA does."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from musubi_backend.architectures.wan.card import CARD
from musubi_backend.architectures.wan.model import WanGeometry, WanTransformer
from musubi_backend.errors import UserError
from musubi_backend.layers.linear import Linear
from musubi_backend.lora import run_network as networks
from musubi_backend.lora.delta import delta, merged
from musubi_backend.lora.modules import LoHa, LoKr, factorised
from musubi_backend.lora.network import LoRANetwork, kind_of, parse_network_args, ranks_from_weights
from musubi_backend.lora.settings import NetworkSettings
from musubi_backend.lora.shapes import LOHA, LOKR, LORA
from musubi_backend.weights.safetensors_file import load, save_atomic

KINDS = {LOHA: "networks.loha", LOKR: "networks.lokr"}


def filled(kind: str, rank: int = 2, inputs: int = 12, outputs: int = 20) -> tuple[Linear, LoHa | LoKr]:
    """A linear and an attached LoRA module of `kind` with random numbers everywhere."""
    torch.manual_seed(0)
    linear = Linear(inputs, outputs)
    module = (LoHa if kind == LOHA else LoKr)(inputs, outputs, rank, alpha=1.0)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter)
    linear.attach(module)
    return linear, module


@pytest.mark.parametrize(("case", "kind", "rank"), [("wan_loha", LOHA, 2), ("wan_lokr", LOKR, 2), ("wan_lokr_full", LOKR, 64)])
def test_files_have_the_recorded_names_and_shapes(case: str, kind: str, rank: int, shared: Path) -> None:
    recorded = load(shared / "golden" / "convert" / f"{case}.default.safetensors")
    model = WanTransformer(WanGeometry(dim=32, ffn_dim=64, num_heads=2, num_layers=1, text_dim=32))
    network = LoRANetwork.create(model, CARD, rank=rank, alpha=1.0, kind=kind)
    assert {name: tuple(t.shape) for name, t in network.state_dict().items()} == {name: tuple(t.shape) for name, t in recorded.items()}
    assert kind_of(recorded) == kind
    sizes = ranks_from_weights(recorded)
    again = LoRANetwork.create(WanTransformer(WanGeometry(dim=32, ffn_dim=64, num_heads=2, num_layers=1, text_dim=32)), CARD,
                               ranks=sizes, kind=kind)  # fmt: skip
    again.load_weights(recorded)
    assert all(torch.equal(again.state_dict()[name], tensor.float()) for name, tensor in recorded.items() if not name.endswith("alpha"))


@pytest.mark.parametrize("rank", [2, 8])
@pytest.mark.parametrize("kind", [LOHA, LOKR])
def test_what_is_added_is_the_delta_in_forward_and_backward(kind: str, rank: int) -> None:
    linear, module = filled(kind, rank)
    parts = dict(module.state_dict())
    x = torch.randn(3, 5, 12, requires_grad=True)
    out = linear(x)
    wanted = F.linear(x, merged(linear.weight, parts, 1.0, "x"), linear.bias)
    assert torch.allclose(out, wanted, atol=1e-4)
    target = torch.randn_like(out)
    ours = torch.autograd.grad((out * target).sum(), [x, *module.parameters()])
    named = {name: parameter.detach().clone().requires_grad_() for name, parameter in module.named_parameters()}
    dense = F.linear(x, linear.weight + delta({**named, "alpha": module.alpha}), linear.bias)
    theirs = torch.autograd.grad((dense * target).sum(), [x, *named.values()])
    for one, other in zip(ours, theirs, strict=True):
        assert torch.allclose(one, other, rtol=1e-3, atol=1e-3 * float(other.abs().max()))
    assert module.delta_norm().item() == pytest.approx(delta(parts).norm().item(), rel=1e-4)


@pytest.mark.parametrize("kind", [LOHA, LOKR])
def test_a_new_lora_module_changes_nothing(kind: str) -> None:
    linear = Linear(12, 20)
    linear.attach((LoHa if kind == LOHA else LoKr)(12, 20, 2, 1.0))
    x = torch.randn(4, 12)
    assert torch.allclose(linear(x), F.linear(x, linear.weight, linear.bias), atol=1e-6)


@pytest.mark.parametrize("kind", [LOHA, LOKR])
def test_shrinking_scales_the_delta(kind: str) -> None:
    _, module = filled(kind)
    before = delta(dict(module.state_dict())).clone()
    with torch.no_grad():
        module.shrink(0.3)
    assert torch.allclose(delta(dict(module.state_dict())), 0.3 * before, atol=1e-4)


@pytest.mark.parametrize("kind", [LOHA, LOKR])
def test_dropouts_act_while_training_only(kind: str) -> None:
    linear, module = filled(kind)
    x = torch.randn(4, 12)
    plain, base = linear(x), F.linear(x, linear.weight, linear.bias)
    module.rank_dropout = 0.5
    module.train()
    added = linear(x) - base
    whole = (plain - base) * 2
    kept = (added.abs() > 1e-6).all(0)
    assert kept.any() and not kept.all(), "whole output rows are dropped"
    assert torch.allclose(added[:, kept], whole[:, kept], atol=1e-3)
    module.eval()
    assert torch.allclose(linear(x), plain)
    module.train()
    module.rank_dropout, module.module_dropout = None, 0.999999
    assert torch.equal(linear(x), linear.base_output(x))


@pytest.mark.parametrize(
    ("size", "factor", "halves"),
    [(128, -1, (8, 16)), (512, -1, (16, 32)), (1024, -1, (32, 32)), (128, 4, (4, 32)), (30, 4, (3, 10)), (7, -1, (1, 7)), (8, 16, (2, 4))],
)
def test_sizes_are_divided_as_musubi_tuner_does(size: int, factor: int, halves: tuple[int, int]) -> None:
    assert factorised(size, factor) == halves


def arguments(**changes: object) -> NetworkSettings:
    values = {"network_module": "networks.lokr", "network_args": None, "network_dropout": None, "network_weights": None,
              "network_dim": 4, "network_alpha": 1.0, "dim_from_weights": False}  # fmt: skip
    return NetworkSettings.read({**values, **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"network_module": "networks.locon"}, "did you mean"),
        ({"network_dropout": 0.1}, "nothing to act on in a LoKr"),
        ({"network_args": ["loraplus_lr_ratio=4"]}, "for LoRA only, and the network is a LoKr"),
        ({"network_args": ["factor=0"]}, "whole number from 1 up"),
        ({"network_module": "networks.loha", "network_args": ["factor=4"]}, "for LoKr only, and the network is a LoHa"),
    ],
)
def test_settings_that_mean_nothing_are_rejected(changes: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        networks.check(arguments(**changes), CARD)
    networks.check(arguments(network_args=["factor=4", "rank_dropout=0.1"]), CARD)


def test_weights_of_another_kind_are_rejected(shared: Path, tmp_path: Path) -> None:
    model = WanTransformer(WanGeometry(dim=32, ffn_dim=64, num_heads=2, num_layers=1, text_dim=32))
    loha = str(shared / "golden" / "convert" / "wan_loha.default.safetensors")
    with pytest.raises(UserError, match=r"is a LoHa, and --network_module networks\.lokr trains a LoKr"):
        networks.build(arguments(network_weights=loha), CARD, model, 0, torch.device("cpu"))
    network = networks.build(
        arguments(network_module="networks.loha", network_weights=loha, dim_from_weights=True), CARD, model, 0, torch.device("cpu")
    )
    assert torch.equal(network.state_dict()["lora_unet_blocks_0_ffn_0.hada_w1_a"], load(loha)["lora_unet_blocks_0_ffn_0.hada_w1_a"])
    save_atomic(dict(network.state_dict()), tmp_path / "again.safetensors")


def test_weights_of_another_model_are_rejected_by_name(tmp_path: Path) -> None:
    model = WanTransformer(WanGeometry(dim=32, ffn_dim=64, num_heads=2, num_layers=1, text_dim=32))
    lora = tmp_path / "hunyuan.safetensors"
    down, up = torch.zeros(4, 32), torch.zeros(32, 4)
    name = "lora_unet_double_blocks_0_img_attn_proj"
    save_atomic({f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up, f"{name}.alpha": torch.tensor(4.0)}, lora)
    with pytest.raises(UserError, match=r"--network_weights .*hunyuan\.safetensors: the LoRA file fits none of this model's layers"):
        networks.build(arguments(network_module="networks.lora_wan", network_weights=str(lora)), CARD, model, 0, torch.device("cpu"))


def test_network_weights_bring_their_alpha_and_with_dim_from_weights_their_ranks(tmp_path: Path) -> None:
    """Of a file with another rank and alpha in each layer; the settings say rank 3 and alpha 1."""
    path, layers = tmp_path / "lora.safetensors", {"blocks_0_ffn_0": (64, 32, 3, 6.0), "blocks_0_ffn_2": (32, 64, 3, -1.5)}

    def built(**changes: object) -> LoRANetwork:
        parts = {}
        for number, (name, (rows, columns, rank, alpha)) in enumerate(layers.items()):
            parts |= {
                f"lora_unet_{name}.lora_up.weight": torch.full((rows, rank), number + 1.0),
                f"lora_unet_{name}.alpha": torch.tensor(alpha),
            }
            parts |= {f"lora_unet_{name}.lora_down.weight": torch.ones(rank, columns)}
        save_atomic(parts, path)
        model = WanTransformer(WanGeometry(dim=32, ffn_dim=64, num_heads=2, num_layers=1, text_dim=32))
        settings = arguments(network_module="networks.lora_wan", network_weights=str(path), network_dim=3, **changes)
        network = networks.build(settings, CARD, model, 0, torch.device("cpu"))
        assert isinstance(network, LoRANetwork)
        return network

    whole = built()
    modules = dict(whole.named_children())
    assert len(modules) == 10 and [modules[f"lora_unet_{name}"].scale for name in layers] == [2.0, -0.5]
    assert modules["lora_unet_blocks_0_self_attn_q"].scale == 1 / 3, "of the settings where the file has nothing"
    layers["blocks_0_ffn_2"] = (32, 64, 5, 2.5)
    with pytest.raises(UserError, match=r"--network_weights .*lora\.safetensors: lora_unet_blocks_0_ffn_2\..* use the same --network_dim"):
        built()
    only = dict(built(dim_from_weights=True).named_children())
    assert {name: (module.rank, module.scale) for name, module in only.items()} == {
        "lora_unet_blocks_0_ffn_0": (3, 2.0), "lora_unet_blocks_0_ffn_2": (5, 0.5),
    }  # fmt: skip


def test_the_dropouts_reach_the_lora_modules() -> None:
    for kind in (LORA, LOHA, LOKR):
        model = WanTransformer(WanGeometry(dim=32, ffn_dim=64, num_heads=2, num_layers=1, text_dim=32))
        network = LoRANetwork.create(model, CARD, rank=2, kind=kind, network_args=["rank_dropout=0.25", "module_dropout=0.5"])
        assert {(module.rank_dropout, module.module_dropout) for module in network.lora_modules()} == {(0.25, 0.5)}


def test_the_factor_reaches_the_lora_modules() -> None:
    model = WanTransformer(WanGeometry(dim=32, ffn_dim=64, num_heads=2, num_layers=1, text_dim=32))
    network = LoRANetwork.create(model, CARD, rank=2, network_args=["factor=2"], kind=LOKR)
    assert network.state_dict()["lora_unet_blocks_0_ffn_0.lokr_w1"].shape == (2, 2)
    assert parse_network_args(["factor=2"], LOKR).factor == 2
