"""Which sizes and lengths of video a model can make."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import UserError

if TYPE_CHECKING:
    from .card import Card


def video_latent_shape(card: Card, width: int, height: int, frames: int) -> tuple[int, int, int, int]:
    """[C, F', H', W'] of one video. Transformers patch latents by 2x2, so pixels come in steps of 16; frames are 4n+1. UserError names the
    nearest valid size where this one does not fit."""
    channels, stride, compression = card.latent_channels, card.frame_stride, card.spatial_compression
    step = compression * 2
    if width % step or height % step or width < step or height < step:
        nearest = "x".join(str(max(step, round(side / step) * step)) for side in (width, height))
        raise UserError(f"size {width}x{height} does not fit {card.title}: sides are multiples of {step}; nearest is {nearest}")
    if (frames - 1) % stride or frames < 1:
        fitting = max(0, round((frames - 1) / stride)) * stride + 1
        raise UserError(f"{frames} frames do not fit {card.title}: it makes {stride}n+1 frames; nearest is {fitting}")
    return (channels, (frames - 1) // stride + 1, height // compression, width // compression)
