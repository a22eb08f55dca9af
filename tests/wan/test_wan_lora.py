"""Which layers get a LoRA, what it does in training, and its options."""

from __future__ import annotations

import pytest
import torch
from musubi_backend.architectures.wan.card import CARD
from musubi_backend.architectures.wan.model import WanTransformer
from musubi_backend.errors import UserError
from musubi_backend.lora.network import LoRANetwork, ranks_from_weights


@pytest.fixture
def create(small):
    """create(...) -> a new LoRA on a new small model"""
    return lambda **kwargs: LoRANetwork.create(WanTransformer(small), CARD, **kwargs)


def test_a_new_lora_changes_nothing_bit_for_bit(model_with_lora, example):
    model, network = model_with_lora(dtype=torch.bfloat16)
    sample = example([5])
    network.set_strength(0.0)
    with torch.no_grad():
        without = model(*sample)
        fresh = LoRANetwork.create(model, CARD, rank=4)
        assert torch.equal(model(*sample), without)
        next(iter(fresh.lora_modules())).lora_up.weight.fill_(1.0)
        assert not torch.equal(model(*sample), without)


def test_new_weights_follow_musubi_tuners_rules(create, small):
    network = create(rank=8, alpha=None)
    module = next(iter(network.lora_modules()))
    bound = small.dim**-0.5  # kaiming uniform with a = sqrt(5)
    assert module.lora_down.weight.abs().max() <= bound
    assert module.lora_down.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.2)
    assert not module.lora_up.weight.any()
    assert (module.alpha.item(), module.scale) == (1.0, 1 / 8)
    assert all(p.dtype == torch.float32 and p.requires_grad for p in network.parameters())
    zero_alpha = next(iter(create(rank=8, alpha=0).lora_modules()))
    assert (zero_alpha.alpha.item(), zero_alpha.scale) == (8.0, 1.0)


def test_dropouts_act_in_train_mode_only(model_with_lora, example):
    for options in ({"dropout": 0.5}, {"network_args": ["rank_dropout=0.5"]}, {"network_args": ["module_dropout=0.5"]}):
        model, network = model_with_lora(**options)
        sample = example([5])
        with torch.no_grad():
            network.eval()
            assert torch.equal(model(*sample), model(*sample))
            network.train()
            assert not torch.equal(model(*sample), model(*sample))


def test_patterns_choose_layers(create):
    assert len(create().targets) == 3 * 10
    no_ffn = create(network_args=["exclude_patterns=['.*ffn.*']"])
    assert len(no_ffn.targets) == 3 * 8
    one_back = create(network_args=["exclude_patterns=['.*ffn.*']", r"include_patterns=[r'blocks\.1\.ffn\.0']"])
    assert sorted(set(one_back.targets.values()) - set(no_ffn.targets.values())) == ["blocks.1.ffn.0"]
    beginning = create(network_args=[r"exclude_patterns=[r'blocks\.1', r'blocks\.1\.ffn']"])
    assert len(beginning.targets) == 3 * 10, "the beginning of a longer name is not the name"


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("exclude_patterns=['.*']", "No LoRA modules found"),
        ("exclude_patterns=['(']", "exclude_patterns"),
        ("exclude_patterns=.*ffn", "list of regular expressions"),
        ("rank_dropout=much", "not a number"),
        ("module_dropout=1.0", "below 1"),
        ("loraplus_ratio=4", "loraplus_ratio: unknown"),
        ("verbose", "key=value"),
    ],
)
def test_bad_network_arguments_are_rejected(create, argument, message):
    with pytest.raises(UserError, match=message):
        create(network_args=[argument])


def test_lora_plus_trains_the_up_weights_faster(create):
    down, up = create(network_args=["loraplus_lr_ratio=4"]).parameter_groups(1e-4)
    assert (down["lr"], up["lr"]) == (1e-4, 4e-4)
    assert all(p.shape[0] == 4 for p in down["params"])
    assert all(p.shape[1] == 4 for p in up["params"])
    (only,) = create().parameter_groups(1e-4)
    assert len(only["params"]) == len(down["params"]) + len(up["params"])


def test_max_norm_limits_the_delta_itself(model_with_lora):
    _, network = model_with_lora()
    before = [module.lora_up.weight @ module.lora_down.weight * module.scale for module in network.lora_modules()]
    limit = sorted(delta.norm().item() for delta in before)[len(before) // 2]
    report = network.apply_max_norm(limit)
    after = [module.lora_up.weight @ module.lora_down.weight * module.scale for module in network.lora_modules()]
    for was, now in zip(before, after, strict=True):
        assert now.norm().item() == pytest.approx(min(was.norm().item(), limit), rel=1e-5)
    assert 0 < report.keys_scaled < len(before)
    assert report.max_norm == pytest.approx(limit, rel=1e-5)
    assert report.mean_norm == pytest.approx(sum(delta.norm().item() for delta in after) / len(after), rel=1e-5)


def test_ranks_come_back_from_a_file(create, model_with_lora):
    _, network = model_with_lora(network_args=["exclude_patterns=['.*cross_attn.*']"])
    state = network.state_dict()
    same = create(rank=77, ranks=ranks_from_weights(state))
    assert {key: value.shape for key, value in same.state_dict().items()} == {key: value.shape for key, value in state.items()}
    same.load_weights(state)
    assert all(module.scale == pytest.approx(2 / 3) for module in same.lora_modules())


def test_weights_of_another_rank_or_model_are_rejected(create, model_with_lora):
    _, network = model_with_lora()
    state = network.state_dict()
    with pytest.raises(UserError, match=r"--dim_from_weights"):
        create(rank=5).load_weights(state)
    with pytest.raises(UserError, match="fits none of this model's layers"):
        create(rank=3).load_weights({"lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight": torch.zeros(3, 24)})
