"""The flow matching loss and the weights of `--weighting_scheme` (Esser et al. 2024, section 3.1 and appendix B)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .timesteps import schedule_sigmas, schedule_timesteps


def flow_matching_loss(prediction: Tensor, latents: Tensor, noise: Tensor, weight: Tensor | None) -> Tensor:
    """Mean squared error between the predicted velocity and noise - latents, in float32.

    prediction, latents, noise [B, C, F, H, W]; weight [B, 1, 1, 1, 1] or None. Returns a scalar.
    """
    error = torch.nn.functional.mse_loss(prediction.float(), (noise - latents).float(), reduction="none")
    return (error if weight is None else error * weight.to(error.device, non_blocking=True)).mean()


def loss_weight(scheme: str, timesteps: Tensor, dtype: torch.dtype, ndim: int = 5) -> Tensor | None:
    """Weight per sample, [B, 1, ...] with `ndim` axes, or None where every sample counts the same.

    timesteps [B], on the CPU: those that are not in the schedule take the nearest one's sigma, as musubi-tuner does. dtype: of the
    transformer's arithmetic, in which musubi-tuner rounds sigma and the cosmap weight.
    """
    if scheme not in ("sigma_sqrt", "cosmap"):
        return None
    distance = (schedule_timesteps()[None, :] - timesteps.float()[:, None]).abs()
    sigma = schedule_sigmas()[distance.argmin(dim=1)].to(dtype)
    weight = (sigma**-2.0).float() if scheme == "sigma_sqrt" else 2 / (math.pi * (1 - 2 * sigma + 2 * sigma**2))
    return weight.view(-1, *([1] * (ndim - 1)))
