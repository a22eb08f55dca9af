"""`--show_timesteps`: how often each timestep would be trained and what weight it would have, without training."""

from __future__ import annotations

from pathlib import Path

import torch

from .charts import histogram
from .losses import loss_weight
from .settings import TimestepSampling, TrainingSettings
from .timesteps import TRAIN_STEPS, sample_t, schedule_sigmas, sigma_indices

_DRAWS, _BATCH, _PER_LINE, _WIDTH = 100_000, 1000, 25, 64
_LATENT_SIDE = 1024 // 8  # resolution-dependent modes are shown for 1024 x 1024 pixels, as musubi-tuner does


def show(settings: TrainingSettings) -> None:
    """Print the histogram, or write it as `{output_name}.timesteps.png` into the output folder."""
    timesteps, saving = settings.timesteps, settings.saving
    counts = count_timesteps(timesteps, settings.batches.num_timestep_buckets)
    if settings.show_timesteps == "image":
        path = Path(saving.output_dir or ".") / f"{saving.output_name or 'training'}.timesteps.png"
        histogram(path, counts.tolist(), f"timesteps of --timestep_sampling {timesteps.timestep_sampling}, {_DRAWS} draws")
        print(f"histogram saved: {path}", flush=True)
        return
    _print("Sampled timesteps: max count", counts, with_value=False)
    weights = loss_weight(timesteps.weighting_scheme, torch.arange(1, TRAIN_STEPS + 1), torch.float32)
    flat = torch.ones(TRAIN_STEPS) if weights is None else weights.flatten()
    _print("Sampled loss weighting: max weighting", flat, with_value=True)


def count_timesteps(sampling: TimestepSampling, strata: int | None) -> torch.Tensor:
    """How many of 100000 draws fall on each thousandth of t, [1000]. strata: `--num_timestep_buckets`."""
    generator = torch.Generator().manual_seed(0)
    counts = torch.zeros(TRAIN_STEPS)
    for _ in range(_DRAWS // _BATCH):
        if sampling.timestep_sampling == "sigma":
            t = schedule_sigmas()[sigma_indices(sampling, _BATCH, generator)]
        else:
            t = sample_t(sampling, _BATCH, (_LATENT_SIDE, _LATENT_SIDE), generator, _stratified(strata, generator))
        counts += torch.bincount((t * 1000).long().clamp(0, TRAIN_STEPS - 1), minlength=TRAIN_STEPS)
    return counts


def _stratified(strata: int | None, generator: torch.Generator) -> torch.Tensor | None:
    if not strata or strata < 2:
        return None
    return (torch.randint(strata, (_BATCH,), generator=generator) + torch.rand(_BATCH, generator=generator)) / strata


def _print(title: str, values: torch.Tensor, with_value: bool) -> None:
    means = values.view(-1, _PER_LINE).mean(dim=1)
    largest = float(means.max())
    print(f"{title}={largest:g}")
    for index, value in enumerate(means.tolist()):
        number = f"{value:8.2f} " if with_value else ""
        print(f"{index * _PER_LINE:4d}-{(index + 1) * _PER_LINE - 1:4d}: {number}{'#' * int(value / largest * _WIDTH)}")
