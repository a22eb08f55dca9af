"""The LoRA of one expert or of two, as the trainer builds it: sizes, rates, first weights, norms, in numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from musubi_backend.architectures.card import HIGH, LOW
from musubi_backend.architectures.wan.card import CARD
from musubi_backend.errors import UserError
from musubi_backend.layers.experts import Experts
from musubi_backend.layers.linear import Linear
from musubi_backend.lora import run_network as networks
from musubi_backend.lora.expert_networks import ExpertNetworks
from musubi_backend.lora.network import LoRANetwork
from musubi_backend.lora.settings import NetworkSettings
from musubi_backend.seeds import derived_seed
from musubi_backend.weights.safetensors_file import save_atomic
from torch import nn

CPU = torch.device("cpu")
NAME = "lora_unet_blocks_0_linear"


class WanAttentionBlock(nn.Module):
    """A block by the name in Wan's card."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = Linear(width, width, bias=False)


class Model(nn.Module):
    def __init__(self, blocks: int = 1, width: int = 8) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(WanAttentionBlock(width) for _ in range(blocks))


def arguments(**changes: Any) -> NetworkSettings:
    values = {
        "network_module": "networks.lora_wan", "network_args": None, "network_dropout": None, "network_weights": None, "network_dim": 4,
        "network_alpha": 2.0, "dim_from_weights": False,
    }  # fmt: skip
    return NetworkSettings.read({**values, **changes})


def built(model: nn.Module, **changes: Any) -> Any:
    return networks.build(arguments(**changes), CARD, model, 7, CPU)


def pair() -> Experts:
    return Experts({LOW: lambda device: Model(), HIGH: lambda device: Model()}, 0.875, CPU)


def first(*place: str) -> torch.Tensor:
    """The first down weights that follow from a seed's place."""
    model = Model()
    torch.manual_seed(derived_seed(7, *place))
    weights: torch.Tensor = LoRANetwork.create(model, CARD, 4, 2.0).state_dict()[f"{NAME}.lora_down.weight"]
    return weights


def test_a_network_is_built_as_asked_and_ready_to_train() -> None:
    model = Model()
    network = built(model, network_dropout=0.25)
    state = network.state_dict()
    assert state[f"{NAME}.lora_down.weight"].shape == (4, 8) and state[f"{NAME}.alpha"] == 2
    assert network.training and model.blocks[0].linear.addition.dropout == 0.25
    assert torch.equal(state[f"{NAME}.lora_down.weight"], first("network"))


def test_two_experts_share_one_lora_or_have_one_each_with_first_weights_of_their_own() -> None:
    both: Any = pair()
    shared = built(both)
    modules = [both.models[name].blocks[0].linear.addition for name in (LOW, HIGH)]
    assert isinstance(shared, LoRANetwork) and modules[0] is modules[1] is not None
    own = built(pair(), lora_per_expert=True)
    assert isinstance(own, ExpertNetworks)
    for name in (LOW, HIGH):
        assert torch.equal(own.parts[name].state_dict()[f"{NAME}.lora_down.weight"], first("network", name))


def test_a_file_gives_the_first_weights_and_its_rank_only_where_asked(tmp_path: Path) -> None:
    down, up = torch.full((2, 8), 0.5), torch.full((8, 2), 0.25)
    lora = {f"{NAME}.lora_down.weight": down, f"{NAME}.lora_up.weight": up, f"{NAME}.alpha": torch.tensor(1.0)}
    save_atomic(lora, tmp_path / "lora.safetensors")
    weights = str(tmp_path / "lora.safetensors")
    state = built(Model(), network_weights=weights, dim_from_weights=True).state_dict()
    assert torch.equal(state[f"{NAME}.lora_down.weight"], down) and state[f"{NAME}.alpha"] == 1
    with pytest.raises(UserError, match=r"lora\.safetensors"):
        built(Model(), network_weights=weights, network_dim=4)


def test_the_rates_of_the_groups_are_known_before_the_network_is_built() -> None:
    assert networks.rates(arguments(), 1e-3, CARD) == [1e-3]
    plus = arguments(network_args=["loraplus_lr_ratio=16"])
    groups = built(Model(), network_args=plus.network_args).parameter_groups(1e-3)
    assert networks.rates(plus, 1e-3, CARD) == [group["lr"] for group in groups] == pytest.approx([1e-3, 16e-3])


def of_norms(*norms: float) -> LoRANetwork:
    """A network whose LoRA modules add matrices of these norms."""
    network = LoRANetwork.create(Model(len(norms), 1), CARD, 1, 1.0)
    names = [f"lora_unet_blocks_{index}_linear" for index in range(len(norms))]
    state = {f"{name}.lora_down.weight": torch.ones(1, 1) for name in names} | {f"{name}.alpha": torch.ones(()) for name in names}
    network.load_state_dict(state | {f"{name}.lora_up.weight": torch.full((1, 1), norm) for name, norm in zip(names, norms, strict=True)})
    return network


def test_norms_are_limited_over_both_experts_together() -> None:
    both = ExpertNetworks({LOW: of_norms(1.0), HIGH: of_norms(2.0, 3.0, 4.0)})
    report = both.apply_max_norm(2.5)
    assert report.keys_scaled == 2 and report.max_norm == pytest.approx(2.5)
    assert report.mean_norm == pytest.approx((1 + 2 + 2.5 + 2.5) / 4)
    assert [one.delta_norm().item() for part in both.parts.values() for one in part.lora_modules()] == pytest.approx([1, 2, 2.5, 2.5])


def test_the_weights_of_both_experts_are_in_every_group() -> None:
    both = ExpertNetworks({LOW: of_norms(1.0), HIGH: of_norms(2.0, 3.0)})
    (group,) = both.parameter_groups(0.1)
    assert group["lr"] == 0.1 and {id(one) for one in group["params"]} == {id(one) for one in both.parameters()}
    assert set(both.targets) == {f"{LOW}.{NAME}", f"{HIGH}.{NAME}", f"{HIGH}.lora_unet_blocks_1_linear"}
