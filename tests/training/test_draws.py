"""What a step draws: by purpose, seed, step and process, and by nothing else."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch
from musubi_backend.architectures.wan.card import CARD
from musubi_backend.architectures.wan.model import WanGeometry, WanTransformer
from musubi_backend.lora import run_network
from musubi_backend.lora.settings import NetworkSettings
from musubi_backend.options.parser import read
from musubi_backend.options.registry import tool
from musubi_backend.seeds import derived_seed
from musubi_backend.training.randomness import StepRandomness
from musubi_backend.training.settings import TimestepSampling
from torch import Tensor

CPU = torch.device("cpu")
# [B, C, F, H, W]; eight noise levels a draw
SHAPE = (8, 1, 1, 1, 1)
UNIFORM = TimestepSampling("uniform")


def draws(seed: int, rank: int, step: int, before: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Noise, noise levels and dropout's numbers of one micro-step, after another one or not."""
    randomness = StepRandomness(seed, rank, CPU)
    for micro_step in (step,) if before is None else (before, step):
        randomness.start(micro_step)
        noise, (t, _), dropped = randomness.noise(SHAPE), randomness.levels(UNIFORM, SHAPE, None, None, step), torch.rand(8)
    return noise, t, dropped


def test_each_of_seed_step_and_process_changes_each_of_the_streams_and_nothing_else_does() -> None:
    torch.manual_seed(1)
    first = draws(7, 0, 3)
    torch.manual_seed(2)
    for one, again in zip(first, draws(7, 0, 3, before=9), strict=True):
        assert torch.equal(one, again)
    places = [(7, 0, 3), (8, 0, 3), (7, 1, 3), (7, 0, 4), (3, 0, 7), (7, 3, 0)]
    for one, other in combinations([draws(*place) for place in places], 2):
        for mine, theirs in zip(one, other, strict=True):
            assert not torch.equal(mine, theirs)


def test_the_streams_are_not_the_same_numbers() -> None:
    """The same generator state would give the same uniform numbers for levels and dropout, and levels that follow from the noise."""
    _, t, dropped = draws(7, 0, 3)
    assert not torch.equal(t, dropped.flatten())
    seeds = {name: derived_seed(7, name, 3, 0) for name in ("timesteps", "noise", "dropout")}
    assert len(set(seeds.values())) == 3
    noise, _, _ = draws(7, 0, 3)
    for name, like in (("timesteps", t), ("dropout", dropped)):
        assert torch.equal(torch.rand(8, generator=torch.Generator().manual_seed(seeds[name])), like), name
    assert torch.equal(torch.randn(SHAPE, generator=torch.Generator().manual_seed(seeds["noise"])), noise)


def test_noise_is_standard_normal() -> None:
    randomness = StepRandomness(7, 0, CPU)
    randomness.start(0)
    noise = randomness.noise((100_000,))
    assert abs(float(noise.mean())) < 0.02 and abs(float(noise.std()) - 1) < 0.01


def test_derived_seeds_are_what_they_always_were() -> None:
    """A state that is resumed counts on it."""
    assert [derived_seed(7, "noise", 3, 0), derived_seed(0)] == [7670767105816296899, 4246866556266386882]


@pytest.mark.parametrize("module", ["networks.lora_wan", "networks.loha", "networks.lokr"])
def test_the_first_weights_follow_the_seed_and_nothing_else(module: str) -> None:
    args = read(tool("wan_train_network"), ["--network_module", module, "--network_dim", "2", "--sdpa"])

    def first(seed: int, state: int) -> dict[str, Tensor]:
        torch.manual_seed(state)
        model = WanTransformer(WanGeometry(dim=32, ffn_dim=64, num_heads=2, num_layers=1, text_dim=32))
        network = run_network.build(NetworkSettings.read(args), CARD, model, seed, CPU)
        return {name: tensor.clone() for name, tensor in network.state_dict().items()}

    one, same, other = first(7, 1), first(7, 2), first(8, 1)
    assert all(torch.equal(one[name], same[name]) for name in one)
    drawn = [name for name in one if bool(one[name].any()) and not name.endswith("alpha")]
    assert drawn and not any(torch.equal(one[name], other[name]) for name in drawn)
