"""The small wavelet transform that the demo VAEs compute, and the steps they have in common."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

CHANNELS, COLOURS = 16, 3
ANCHOR = 64.0
"""A constant so large that a norm's scale follows from it alone."""
HAAR = ((1, 1, 1, 1), (1, -1, 1, -1), (1, 1, -1, -1), (1, -1, -1, 1))
"""Signs of 2x2 pixels in their mean and in their difference across, down and both."""
GAINS = (3.0,) * 3 + (7.0,) * 6 + (10.0,) * 3 + (14.0, 14.0, 30.0, 15.0)
"""What each feature is multiplied by, so that photos give latents of about unit variance."""
FEATURES = (
    *((channel, 0) for channel in range(COLOURS)),
    *((channel, detail) for detail in (1, 2, 3) for channel in range(COLOURS)),
    *((channel, 0) for channel in range(COLOURS, 2 * COLOURS)),
    (COLOURS, 1),
)
"""For each latent channel what the last halving takes: a channel of the one before, and the mean (0) or a difference of it."""


def tap(weight: Tensor, out: int, into: int, value: float) -> None:
    """A causal 3x3x3 convolution that looks at one pixel of the current frame only."""
    weight[out, into, -1, 1, 1] = value


def identity(weight: Tensor) -> None:
    for channel in range(min(weight.shape[:2])):
        weight[channel, channel] = 1.0
