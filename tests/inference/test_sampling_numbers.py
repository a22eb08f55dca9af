"""A sampling run in numbers: a model that predicts what its batch says follows a straight line, whose end is worked out here."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from musubi_backend.architectures.request import Guidance, SampleRequest
from musubi_backend.architectures.wan.adapter import Wan
from musubi_backend.inference.sampling import SOURCE, initial_noise, sample
from torch import Tensor, nn

CPU = torch.device("cpu")
SHAPE = (16, 2, 2, 2)
WITH_PROMPT, WITHOUT, PER_BLOCK = 1.0, 0.25, 10.0


class Blocks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.ones(()))  # not frozen: what is kept for backward shows

    def block_lists(self) -> list[nn.ModuleList]:
        return [nn.ModuleList(nn.Identity() for _ in range(3))]


class Straight(Wan):
    """Predicts the same velocity everywhere: the number of its text, and more for every block that is left out."""

    def __init__(self, boundary: float | None = None) -> None:
        self._boundary = boundary
        self.reported: list[float] = []

    def boundary(self) -> float | None:
        return self._boundary

    def predict(self, transformer: nn.Module, noisy: Tensor, timesteps: Tensor, batch: Any, skip_blocks: Any = ()) -> Tensor:
        self.reported.append(timesteps.item())
        velocity: Tensor = (noisy * 0 + batch["number"] + PER_BLOCK * sum(skip_blocks)) * transformer.factor
        return velocity


def request(**changes: Any) -> SampleRequest:
    settings: dict[str, Any] = {"guidance": Guidance(3.0), "seed": 5, "steps": 4, "sampler": "vanilla", "flow_shift": 1.0, **changes}
    return SampleRequest("a dog", width=16, height=16, frames=5, **settings)


def travelled(of: SampleRequest, straight: Straight | None = None, source: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """(latents at the end, noise at the start)"""
    positive = {"number": torch.tensor(WITH_PROMPT)} | ({} if source is None else {SOURCE: source})
    negative = {"number": torch.tensor(WITHOUT)}
    end = sample(straight or Straight(), Blocks(), of, positive, negative, device=CPU)
    return end, torch.randn(SHAPE, generator=torch.Generator().manual_seed(of.seed))


GUIDED = WITHOUT + 3 * (WITH_PROMPT - WITHOUT)
LESS = WITHOUT + PER_BLOCK
"""Without the prompt and block 1."""
LAYERS: dict[str, Any] = {"slg_layers": (1,), "slg_start": 0.25, "slg_end": 0.75}


@pytest.mark.parametrize(
    ("guidance", "velocities"),
    [
        (Guidance(1.0), [WITH_PROMPT] * 4),
        (Guidance(3.0), [GUIDED] * 4),
        (Guidance(3.0, "early", 0.25), [WITH_PROMPT] * 3 + [GUIDED]),
        (Guidance(3.0, "late", 0.25), [GUIDED] + [WITH_PROMPT] * 3),
        (Guidance(3.0, "early_late", 0.5), [WITH_PROMPT, GUIDED, GUIDED, WITH_PROMPT]),
        (
            Guidance(3.0, slg_mode="original", slg_scale=2.0, **LAYERS),
            [GUIDED, *[GUIDED + 2 * (WITH_PROMPT - LESS)] * 2, GUIDED],
        ),
        (Guidance(1.0, slg_mode="original", slg_scale=2.0, **LAYERS), [1.0, *[1 + 2 * (WITH_PROMPT - LESS)] * 2, 1.0]),
        (Guidance(3.0, slg_mode="uncond", **LAYERS), [GUIDED, *[LESS + 3 * (WITH_PROMPT - LESS)] * 2, GUIDED]),
    ],
)
def test_the_way_is_the_sum_of_the_guided_velocities(guidance: Guidance, velocities: list[float]) -> None:
    """Sigmas 1, 3/4, 1/2 and 1/4, shifted by 3: steps of different lengths, so that their order counts."""
    end, noise = travelled(request(guidance=guidance, flow_shift=3.0))
    way = sum(length * velocity for length, velocity in zip((0.1, 0.15, 0.25, 0.5), velocities, strict=True))
    torch.testing.assert_close(end, noise - way, rtol=1e-5, atol=1e-4)


def test_the_boundary_itself_is_the_high_noise_experts() -> None:
    """Timesteps 1000, 750, 500, 250 with a boundary of 0.75: two steps on each side."""
    straight = Straight(boundary=0.75)
    end, noise = travelled(request(guidance_high_noise=Guidance(2.0)), straight)
    high = WITHOUT + 2 * (WITH_PROMPT - WITHOUT)
    torch.testing.assert_close(end, noise - (2 * high + 2 * GUIDED) / 4)
    assert straight.reported == [1000, 1000, 750, 750, 500, 500, 250, 250]


def test_a_video_that_is_changed_is_mixed_with_noise_as_the_first_sigma_says() -> None:
    class LastHalf(Straight):
        def sampler(self, request: SampleRequest) -> Any:
            from musubi_backend.inference.samplers import Euler

            return Euler([0.25, 0.0])

    source = torch.full(SHAPE, 2.0)
    end, noise = travelled(request(guidance=Guidance(1.0)), LastHalf(), source)
    torch.testing.assert_close(end, 0.75 * source + 0.25 * noise - 0.25 * WITH_PROMPT)


def test_noise_is_drawn_at_once_or_frame_by_frame() -> None:
    frames = torch.Generator().manual_seed(5)
    by_frame = torch.cat([torch.randn((16, 1, 2, 2), generator=frames) for _ in range(2)], dim=1)
    assert torch.equal(initial_noise(SHAPE, request(), CPU, per_frame=True), by_frame)
    assert torch.equal(initial_noise(SHAPE, request(), CPU), travelled(request())[1])


def test_samples_keep_nothing_for_a_backward() -> None:
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        end, _ = travelled(request())
    assert not end.requires_grad and kept == []
