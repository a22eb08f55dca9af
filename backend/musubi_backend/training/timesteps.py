"""How noisy each training sample gets: the `--timestep_sampling` modes of musubi-tuner as functions of a generator.

t in [0, 1] is sigma, the noise level: x_t = (1 - t) * latents + t * noise. The model is given 1000 t + 1, except in mode "sigma",
which picks an entry of the 1000-step flow matching schedule and tells the model that entry.
Sources: Esser et al. 2024 (logit-normal, mode), BFL flux (resolution-dependent shift), Hang et al. 2024 (log-SNR).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from functools import lru_cache

import torch
from torch import Tensor

from ..counted import counted
from .settings import TimestepSampling

logger = logging.getLogger(__name__)

TRAIN_STEPS = 1000
MAX_REDRAWS = 1000  # musubi-tuner's limit when every value has to fall into min_timestep..max_timestep

# mode -> shift exponent mu as a line through (tokens, mu), tokens per latent pixel side divided by `patch`
_RESOLUTION_SHIFTS: dict[str, tuple[int, float, float]] = {
    # patch, tokens at mu 0.5 .. (tokens, mu) of the second point
    "flux_shift": (2, 4096, 1.15),
    "flux2_shift": (1, 4096, 1.15),
    "qwen_shift": (2, 8192, 0.9),
    "krea2_shift": (2, 6400, 1.15),
}


@lru_cache(maxsize=1)
def schedule_sigmas() -> Tensor:
    """Noise shares of the training schedule, [1001] from 1 to 0. `--discrete_flow_shift` does not change them."""
    return torch.linspace(1.0, 0.0, TRAIN_STEPS + 1)


@lru_cache(maxsize=1)
def schedule_timesteps() -> Tensor:
    """Timesteps of the training schedule, [1000] from 1000 down to 1."""
    return schedule_sigmas()[:-1] * TRAIN_STEPS


def noise_levels(
    sampling: TimestepSampling,
    shape: Sequence[int],
    generator: torch.Generator,
    u: Sequence[float] | None = None,
    boundary: float | None = None,
    first: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """How noisy each item of a batch gets.

    shape: of the latents, [B, C, F, H, W]; generator: on the CPU; u: B values in 0..1 from the stratified pool of
    `--num_timestep_buckets`, or None. boundary: where two experts meet; all of a batch then lies on the side of `first` (t and timesteps,
    [1] each), by default its own first item.
    Returns (t [B], timesteps [B]), float32 on the CPU.
    """

    def draw(count: int, strata: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if sampling.timestep_sampling == "sigma":
            index = sigma_indices(sampling, count, generator)
            return schedule_sigmas()[index], schedule_timesteps()[index]
        t = sample_t(sampling, count, (shape[-2], shape[-1]), generator, strata)
        return t, t * 1000.0 + 1.0

    t, timesteps = draw(shape[0], None if u is None else torch.tensor(u, dtype=torch.float32))
    return (t, timesteps) if boundary is None else on_one_side(t, timesteps, boundary, draw, first or (t[:1], timesteps[:1]))


def noisy_input(latents: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """latents, noise [B, C, F, H, W] mixed by each item's sigma, t [B]."""
    share = t.to(latents.device, non_blocking=True).view(-1, *([1] * (latents.ndim - 1)))
    return (1.0 - share) * latents + share * noise


def on_one_side(
    t: Tensor, timesteps: Tensor, boundary: float, draw: Callable[[int], tuple[Tensor, Tensor]], first: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """(t, timesteps) [B] with what lies on the other side of the boundary than `first` ([1] each) drawn again until it does not.

    boundary: a sigma; timesteps / 1000 from it on are high noise. What never falls on that side takes the place of `first`.
    """
    t, timesteps = t.clone(), timesteps.clone()
    (first_t,), (first_timestep,) = (one.clone() for one in first)
    high = first_timestep / 1000.0 >= boundary
    for _ in range(MAX_REDRAWS):
        wrong = (timesteps / 1000.0 >= boundary) != high
        if not wrong.any():
            return t, timesteps
        t[wrong], timesteps[wrong] = draw(int(wrong.sum()))
    wrong = (timesteps / 1000.0 >= boundary) != high
    t[wrong], timesteps[wrong] = first_t, first_timestep
    return t, timesteps


def sample_t(
    sampling: TimestepSampling,
    batch: int,
    latent_size: tuple[int, int],
    generator: torch.Generator,
    u: Tensor | None = None,
) -> Tensor:
    """Noise shares t [batch] for every mode but "sigma". latent_size: (height, width) in latent pixels; u: [batch] or None."""
    low, high = sampling.low / 1000.0, sampling.high / 1000.0
    if not sampling.preserve_distribution_shape:
        return _draw(sampling, batch, latent_size, generator, u) * (high - low) + low
    kept = torch.empty(0)
    for _ in range(MAX_REDRAWS):
        t = _draw(sampling, batch, latent_size, generator, u)
        u = None  # the pool's values are used once; what falls outside is drawn freely
        kept = torch.cat([kept, t[(t >= low) & (t <= high)]])
        if len(kept) >= batch:
            return kept[:batch]
    logger.warning(
        "no %s between %g and %g in %d draws of %s; drawing without the limits",
        counted(batch, "timestep"), sampling.low, sampling.high, MAX_REDRAWS, sampling.timestep_sampling,
    )  # fmt: skip
    return _draw(sampling, batch, latent_size, generator, None)


def sigma_indices(sampling: TimestepSampling, batch: int, generator: torch.Generator) -> Tensor:
    """Indices [batch] into the training schedule for mode "sigma", distributed by `--weighting_scheme`."""
    if sampling.weighting_scheme == "logit_normal":
        u = torch.normal(sampling.logit_mean, sampling.logit_std, (batch,), generator=generator).sigmoid()
    else:
        u = torch.rand(batch, generator=generator)
        if sampling.weighting_scheme == "mode":
            u = 1 - u - sampling.mode_scale * (torch.cos(math.pi * u / 2) ** 2 - 1 + u)
    index = (u * (sampling.high - sampling.low) + sampling.low).long()
    return index.clamp(0, TRAIN_STEPS - 1)  # max_timestep 1000 with u rounded up to 1 would be one past the end


def shift_of(mode: str, sampling: TimestepSampling, latent_size: tuple[int, int]) -> float:
    """The factor s of t -> s t / (1 + (s - 1) t): fixed for "shift", growing with the token count for the others."""
    if mode == "shift":
        return sampling.discrete_flow_shift
    patch, tokens, mu = _RESOLUTION_SHIFTS[mode]
    count = (latent_size[0] // patch) * (latent_size[1] // patch)
    slope = (mu - 0.5) / (tokens - 256)
    return math.exp(slope * count + (0.5 - slope * 256))


def _draw(sampling: TimestepSampling, batch: int, latent_size: tuple[int, int], generator: torch.Generator, u: Tensor | None) -> Tensor:
    mode = sampling.timestep_sampling
    if mode == "uniform":
        return _uniform(batch, generator, u)
    if mode == "sigmoid":
        return (sampling.sigmoid_scale * _normal(batch, generator, u)).sigmoid()
    if mode == "ideogram4_shift":
        return _ideogram4(_uniform(batch, generator, u), latent_size)
    if mode == "logsnr":
        return _log_snr(batch, sampling.logit_mean, sampling.logit_std, generator, u)
    if mode in ("qinglong_flux", "qinglong_qwen"):
        return _qinglong(sampling, batch, latent_size, generator, u)
    return _shifted(mode, sampling, batch, latent_size, generator, u)


def _shifted(
    mode: str, sampling: TimestepSampling, batch: int, latent_size: tuple[int, int], generator: torch.Generator, u: Tensor | None
) -> Tensor:
    shift = shift_of(mode, sampling, latent_size)
    t = (_normal(batch, generator, u) * sampling.sigmoid_scale).sigmoid()
    return t * shift / (1 + (shift - 1) * t)


def _log_snr(batch: int, mean: float, std: float, generator: torch.Generator, u: Tensor | None) -> Tensor:
    log_snr = torch.normal(mean, std, (batch,), generator=generator) if u is None else mean + std * _normal(batch, generator, u)
    return torch.sigmoid(-log_snr / 2)


def _qinglong(sampling: TimestepSampling, batch: int, latent_size: tuple[int, int], generator: torch.Generator, u: Tensor | None) -> Tensor:
    """A mixture decided per sample: mostly a resolution shift, the rest log-normal SNRs that favour nearly clean inputs."""
    flux = sampling.timestep_sampling == "qinglong_flux"
    choice = torch.rand(batch, generator=generator)
    first, second = (0.79, 0.9) if flux else (0.95, 0.95)
    parts = [
        (choice < first, None),
        ((choice >= first) & (choice < second), (sampling.logit_mean, sampling.logit_std)),
        (choice >= second, (5.36, 1.0)),
    ]
    t = torch.zeros(batch)
    for mask, log_snr in parts:
        count = int(mask.sum())
        if not count:
            continue
        part_u = None if u is None else u[mask]
        if log_snr is None:
            t[mask] = _shifted("flux_shift" if flux else "qwen_shift", sampling, count, latent_size, generator, part_u)
        else:
            t[mask] = _log_snr(count, *log_snr, generator, part_u)
    return t


def _ideogram4(u: Tensor, latent_size: tuple[int, int]) -> Tensor:
    """Logit-normal whose mean grows with the image's pixels (16 per token side), cut to the log-SNR range -15..18."""
    pixels = latent_size[0] * 16 * latent_size[1] * 16
    mean = 0.5 * math.log(pixels / 512**2)
    z = torch.special.ndtri(u.double().clamp(1e-7, 1 - 1e-7))
    lowest, highest = 1 / (1 + math.exp(9.0)), 1 / (1 + math.exp(-7.5))
    result: Tensor = (mean + 1.5 * z).sigmoid().clamp(1 - highest, 1 - lowest).to(u.dtype)
    return result


def _uniform(batch: int, generator: torch.Generator, u: Tensor | None) -> Tensor:
    return torch.rand(batch, generator=generator) if u is None else u


def _normal(batch: int, generator: torch.Generator, u: Tensor | None) -> Tensor:
    if u is None:
        return torch.randn(batch, generator=generator)
    return math.sqrt(2.0) * torch.erfinv(2.0 * u.clamp(1e-7, 1.0 - 1e-7) - 1.0)
