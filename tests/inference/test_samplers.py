"""The samplers give musubi-tuner's timesteps, sigmas and trajectories, and solve what can be solved exactly."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from musubi_backend.errors import UserError
from musubi_backend.inference import samplers
from safetensors.torch import load_file

GOLDEN_NAMES = {"unipc": "wan_unipc", "dpm++": "wan_dpmpp", "vanilla": "wan_vanilla"}


@pytest.mark.parametrize("sampler", samplers.SAMPLERS)
def test_timesteps_and_sigmas_are_those_of_musubi(shared: Path, sampler: str) -> None:
    expected = json.loads((shared / "golden/timesteps/schedulers.json").read_text())[f"{GOLDEN_NAMES[sampler]}_shift5_10"]
    ours = samplers.wan_sampler(sampler, 10, 5.0)
    # musubi keeps sigmas in float32, ours are exact: 1e-6 covers the rounding of a few float32 operations
    assert ours.sigmas == pytest.approx(expected["sigmas"], abs=1e-6)
    assert ours.timesteps == pytest.approx(expected["timesteps"], abs=1e-3)


@pytest.mark.parametrize("sampler", samplers.SAMPLERS)
def test_ten_step_trajectory_is_that_of_musubi(shared: Path, sampler: str) -> None:
    golden = load_file(shared / "golden/timesteps/scheduler_traj.safetensors")
    run = samplers.wan_sampler(sampler, 10, 5.0)
    x = golden["x0"]
    for i, expected in enumerate(golden[f"{GOLDEN_NAMES[sampler]}.traj"][1:]):
        x = run.step(0.5 * torch.tanh(x) + 0.01 * i, x)
        # float32 scalars in musubi, float64 here; errors of log(1 - sigma) near pure noise reach 1e-5
        torch.testing.assert_close(x, expected, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("sampler", samplers.SAMPLERS)
@pytest.mark.parametrize("steps", [1, 2, 3, 20])
def test_one_data_point_is_found_exactly(sampler: str, steps: int) -> None:
    """If all data is one point d, the velocity is (x - d) / sigma and every sampler must land on d."""
    data = torch.linspace(-2, 2, 7)
    run = samplers.wan_sampler(sampler, steps, 3.0)
    x = torch.randn(7, generator=torch.Generator().manual_seed(1))
    for sigma in run.sigmas[:-1]:
        x = run.step((x - data) / sigma, x)
    torch.testing.assert_close(x, data, rtol=0, atol=1e-5)


def _gaussian_error(name: str, steps: int) -> float:
    """Error after integrating the flow of data ~ N(0, 0.25), whose exact end point is 0.5 * noise."""
    sigmas = samplers.wan_sigmas("unipc", steps, 1.0)
    run = samplers.UniPC(sigmas, order=3) if name == "unipc3" else samplers.wan_sampler(name, steps, 1.0)
    start = run.sigmas[0]
    x = torch.full((1,), math.sqrt((1 - start) ** 2 * 0.25 + start**2), dtype=torch.float64)
    for sigma in run.sigmas[:-1]:
        velocity = x * (sigma - (1 - sigma) * 0.25) / ((1 - sigma) ** 2 * 0.25 + sigma**2)
        x = run.step(velocity, x)
    return abs(x.item() - 0.5)


def test_higher_order_samplers_converge_faster() -> None:
    euler, dpm, unipc, unipc3 = (_gaussian_error(name, 64) for name in ("vanilla", "dpm++", "unipc", "unipc3"))
    assert dpm < euler / 5
    assert unipc < dpm
    assert unipc3 < dpm
    assert _gaussian_error("vanilla", 128) == pytest.approx(euler / 2, rel=0.1)  # first order


def test_unknown_sampler_is_rejected() -> None:
    with pytest.raises(UserError, match="unipc, dpm"):
        samplers.wan_sampler("heun", 10, 5.0)
