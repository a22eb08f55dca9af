"""Timestep sampling and loss weights equal musubi-tuner's recorded draws, and each mode keeps its promise."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from musubi_backend.training.losses import flow_matching_loss, loss_weight
from musubi_backend.training.settings import TimestepSampling
from musubi_backend.training.timesteps import noise_levels, noisy_input, sample_t, schedule_timesteps, sigma_indices


@pytest.fixture(scope="module")
def golden(shared: Path) -> dict[str, Any]:
    return json.loads((shared / "golden/timesteps/timesteps.json").read_text())


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draw(case: dict[str, Any], generator: torch.Generator, batch: int) -> torch.Tensor:
    sampling = TimestepSampling(**case["args"])
    if sampling.timestep_sampling == "sigma":
        return schedule_timesteps()[sigma_indices(sampling, batch, generator)]
    height, width = case["latent_hw"]
    return sample_t(sampling, batch, (height, width), generator) * 1000 + 1


def test_given_u_every_mode_gives_the_recorded_timestep(golden: dict[str, Any]) -> None:
    u = torch.tensor(golden["u"])
    for case in golden["exact"]:
        t = sample_t(TimestepSampling(**case["args"]), len(u), tuple(case["latent_hw"]), seeded(0), u)
        # one float32 rounding of erfinv or sigmoid may differ between builds of torch
        np.testing.assert_allclose((t * 1000 + 1).numpy(), case["timesteps"], rtol=1e-6, atol=2e-4, err_msg=str(case["args"]))


def test_the_same_random_stream_gives_the_recorded_timesteps_and_weights(golden: dict[str, Any]) -> None:
    for case in golden["sampled"]:
        timesteps = draw(case, seeded(case["seed"]), case["batch"])
        np.testing.assert_allclose(timesteps.numpy(), case["timesteps"], rtol=1e-6, atol=2e-4, err_msg=str(case["args"]))
        dtype = getattr(torch, case["dit_dtype"].removeprefix("torch."))
        weight = loss_weight(case["args"].get("weighting_scheme", "none"), timesteps, dtype)
        if case["weighting"] is None:
            assert weight is None
        else:
            assert weight is not None and list(weight.shape) == case["weighting_shape"]
            np.testing.assert_allclose(weight.float().flatten().numpy(), case["weighting"], rtol=1e-6, err_msg=str(case["args"]))


def test_long_run_distribution_equals_the_recorded_histogram(golden: dict[str, Any]) -> None:
    for case in golden["hist"]:
        generator, counts = seeded(7), np.zeros(40)
        batch = 1000
        for _ in range(20):
            values = draw(case, generator, batch).numpy()
            if case["args"]["timestep_sampling"] != "sigma":
                values = values - 1  # recorded as 1000 t
            counts += np.histogram(np.clip(values, 0, 999.999), bins=40, range=(0, 1000))[0]
        expected = np.array(case["bins40"]) / case["n"]
        spread = np.sqrt(expected * (1 - expected) * (1 / counts.sum() + 1 / case["n"]))
        # 5 standard deviations of the difference of two samples, plus two draws: over 760 bins a false alarm is < 1e-3
        assert (np.abs(counts / counts.sum() - expected) < 5 * spread + 2 / counts.sum()).all(), case["args"]


def test_limits_hold_and_preserved_shape_is_cut_not_squeezed() -> None:
    limits = {"min_timestep": 500, "max_timestep": 900}
    t_free = sample_t(TimestepSampling("sigmoid"), 20000, (32, 32), seeded(4))
    t_squeezed = sample_t(TimestepSampling("sigmoid", **limits), 4000, (32, 32), seeded(3))
    t_cut = sample_t(TimestepSampling("sigmoid", preserve_distribution_shape=True, **limits), 4000, (32, 32), seeded(3))
    for t in (t_cut, t_squeezed):
        assert t.min() >= 0.5 and t.max() <= 0.9
    inside = t_free[(t_free >= 0.5) & (t_free <= 0.9)]
    assert abs(float(t_cut.median() - inside.median())) < 0.02 < abs(float(t_squeezed.median() - inside.median()))


def test_an_impossible_range_warns_and_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    sampling = TimestepSampling("logsnr", logit_mean=-60.0, logit_std=0.1, max_timestep=10, preserve_distribution_shape=True)
    assert sample_t(sampling, 2, (8, 8), seeded(0)).shape == (2,)
    assert "drawing without the limits" in caplog.text


def test_input_is_pure_latents_at_0_and_pure_noise_at_1_and_the_model_is_given_1000t_plus_1() -> None:
    latents, noise = torch.randn(2, 4, 2, 6, 6), torch.randn(2, 4, 2, 6, 6)
    t, timesteps = noise_levels(TimestepSampling("uniform"), latents.shape, seeded(0), u=[0.0, 1.0])
    noisy = noisy_input(latents, noise, t)
    assert torch.equal(noisy[0], latents[0]) and torch.equal(noisy[1], noise[1])
    assert timesteps.tolist() == [1.0, 1001.0]


def test_sigma_mode_mixes_with_the_sigma_of_the_timestep_it_reports() -> None:
    latents, noise = torch.zeros(64, 1, 1, 2, 2), torch.ones(64, 1, 1, 2, 2)
    t, timesteps = noise_levels(TimestepSampling("sigma", discrete_flow_shift=3.0), latents.shape, seeded(1))
    noisy = noisy_input(latents, noise, t)
    torch.testing.assert_close(noisy[:, 0, 0, 0, 0] * 1000, timesteps, rtol=0, atol=1e-4)
    assert torch.equal(timesteps, schedule_timesteps()[(1000 - timesteps).round().long()])


def test_loss_is_the_weighted_mean_square_of_the_velocity_error() -> None:
    latents, noise = torch.randn(2, 3, 1, 4, 4), torch.randn(2, 3, 1, 4, 4)
    assert flow_matching_loss(noise - latents, latents, noise, None) == 0
    assert flow_matching_loss(latents - noise, latents, noise, None) > 1  # the opposite convention is not zero
    weight = torch.tensor([1.0, 3.0]).view(2, 1, 1, 1, 1)
    off = noise - latents + 1
    torch.testing.assert_close(flow_matching_loss(off, latents, noise, weight), torch.tensor(2.0))
