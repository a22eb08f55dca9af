"""Noise levels and losses at their edges, worked out by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from musubi_backend.training.losses import flow_matching_loss
from musubi_backend.training.randomness import StepRandomness
from musubi_backend.training.settings import TimestepSampling
from musubi_backend.training.timesteps import noise_levels, sample_t
from torch import Tensor

IMAGE = (1, 16, 1, 64, 32)
"""[B, C, F, H, W]: latents that are twice as high as wide."""
MU = (1.15 - 0.5) / (4096 - 256)
FLUX = math.exp(MU * 512 + 0.5 - 256 * MU)
"""The shift of 32 x 16 tokens."""


def seeded(number: int) -> torch.Generator:
    return torch.Generator().manual_seed(number)


def levels(u: float, shape: tuple[int, ...] = IMAGE, **settings: Any) -> float:
    t, timesteps = noise_levels(TimestepSampling(**settings), shape, seeded(0), [u])
    torch.testing.assert_close(timesteps, t * 1000 + 1)
    return t.item()


def test_the_shift_by_resolution_counts_the_tokens_of_both_sides() -> None:
    # the middle of the distribution: a normal number of 0, a share of 1/2 before the shift
    assert levels(0.5, timestep_sampling="flux_shift") == pytest.approx(FLUX / (1 + FLUX), rel=1e-6)


def test_strata_reach_the_parts_of_a_mixture() -> None:
    generator = next(seeded(number) for number in range(99) if torch.rand(1, generator=seeded(number)) < 0.79)
    t, _ = noise_levels(TimestepSampling("qinglong_flux"), IMAGE, generator, [0.5])
    assert t.item() == pytest.approx(FLUX / (1 + FLUX), rel=1e-6)


def test_limits_squeeze_the_distribution_or_cut_it() -> None:
    limits: dict[str, Any] = {"timestep_sampling": "uniform", "min_timestep": 200, "max_timestep": 600}
    assert levels(0.25, **limits) == pytest.approx(0.2 + 0.25 * 0.4)
    cut = TimestepSampling(**limits, preserve_distribution_shape=True)
    # 0.1 and 0.7 of the pool fall outside; what is drawn in their place is random, never the pool's values again
    fresh = [value for value in torch.rand(400, generator=seeded(3)).view(-1, 4).flatten().tolist() if 0.2 <= value <= 0.6]
    t = sample_t(cut, 4, (8, 8), seeded(3), torch.tensor([0.1, 0.5, 0.7, 0.6]))
    assert t.tolist() == pytest.approx([0.5, 0.6, *fresh[:2]])


def test_a_share_that_rounds_to_one_is_the_last_entry_of_the_schedule() -> None:
    t, timesteps = noise_levels(TimestepSampling("sigma", weighting_scheme="logit_normal", logit_mean=100), IMAGE, seeded(0))
    assert timesteps.tolist() == [1] and t.tolist() == pytest.approx([0.001])


@pytest.mark.parametrize("boundary", [0.3, 0.9])
def test_all_of_a_batch_are_drawn_on_one_side_of_the_boundary(boundary: float) -> None:
    randomness = StepRandomness(7, 0, torch.device("cpu"))
    for step in range(4):
        randomness.start(step)
        _, timesteps = randomness.levels(TimestepSampling("uniform"), (16, 1, 1, 1, 1), None, boundary, step)
        assert len({value >= 1000 * boundary for value in timesteps.tolist()}) == 1


def test_experts_take_turns_of_several_steps_and_keep_their_share() -> None:
    """Within a group of steps, and in all processes, one expert; as often and at the levels that batches of their own would be."""
    boundary, every, groups, batch = 0.3, 10, 200, 4

    def drawn(step: int, rank: int = 0) -> Tensor:
        randomness = StepRandomness(7, rank, torch.device("cpu"))
        randomness.start(step)
        turns = TimestepSampling("uniform", steps_per_expert=every)
        return randomness.levels(turns, (batch, 1, 1, 1, 1), None, boundary, step)[1]

    sides = [{value >= 1000 * boundary for value in torch.cat([drawn(step), drawn(step, 1)]).tolist()} for step in range(3 * every)]
    assert all(len(set().union(*sides[start : start + every])) == 1 for start in range(0, 3 * every, every))
    first = torch.stack([drawn(group * every) for group in range(groups)])
    high = first[:, 0] >= 1000 * boundary
    # four deviations: of the groups, and of the levels of one side
    assert high.float().mean().item() == pytest.approx(0.7, abs=4 * (0.7 * 0.3 / groups) ** 0.5)
    upper = first[high].flatten()
    assert upper.mean().item() / 1000 == pytest.approx(0.65, abs=4 * 0.7 / (12 * len(upper)) ** 0.5)


def test_each_sample_has_its_own_weight() -> None:
    prediction, latents, noise = torch.zeros(2, 1, 1, 1, 2), torch.zeros(2, 1, 1, 1, 2), torch.zeros(2, 1, 1, 1, 2)
    noise[0], noise[1] = 1.0, 3.0
    weight = torch.tensor([5.0, 0.5]).view(2, 1, 1, 1, 1)
    assert flow_matching_loss(prediction, latents, noise, weight).item() == pytest.approx((5 * 1 + 0.5 * 9) / 2)
    # the target is noise minus latents
    assert flow_matching_loss(prediction + 2, latents + 1, noise, None).item() == pytest.approx((4 + 0) / 2)
