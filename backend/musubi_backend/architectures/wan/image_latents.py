"""Images and videos as conditions: how they are brought to size, and the latents that stand for them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from ...dataset.images import fit
from ...errors import UserError
from ...inference.request_media import read

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor

    from ...dataset.buckets import Size
    from ...encoders.wan_vae import WanVAE

STEP = 16
"""Sides of a video are multiples of this: the VAE shrinks by 8, the transformer's patches by 2."""


def to_video(pixels: np.ndarray, device: torch.device, dtype: torch.dtype) -> Tensor:
    """uint8 [B, F, H, W, 3] -> [B, 3, F, H, W] in -1..1."""
    import torch

    tensor = torch.from_numpy(pixels).to(device).permute(0, 4, 1, 2, 3)
    return (tensor.to(dtype) / 127.5 - 1.0).contiguous()


def start_latents(vae: WanVAE, first: Tensor, frames: int, last: Tensor | None = None, known: Tensor | None = None) -> Tensor:
    """first (and last) frame [B, 3, 1, H, W] in -1..1 of a video of `frames` -> [B, 4 + 16, F', H/8, W/8]: a mask that is 1 where a
    image is given, and the latents of the video whose other frames are an even grey. known: these latents, where they are."""
    import torch

    latents = known
    if latents is None:
        video = first.new_zeros(*first.shape[:2], frames, *first.shape[3:])
        video[:, :, :1] = first
        if last is not None:
            video[:, :, -1:] = last
        latents = vae.encode(video)
    mask = torch.zeros_like(latents[:, :4])
    mask[:, :, 0] = 1
    if last is not None:
        mask[:, -1, -1] = 1  # of the four frames behind the last latent one only the last
    return torch.cat([mask, latents], dim=1)


def size_like(image: Size, area: int) -> Size:
    """The largest valid (width, height) of at most about `area` pixels with the shape of `image`, as Wan's own program finds it."""
    ratio = image[1] / image[0]
    width, height = (int(math.sqrt(pixels) // STEP) * STEP for pixels in (area / ratio, area * ratio))
    if min(width, height) < STEP:
        raise UserError(f"an image of {image[0]}x{image[1]} is too narrow for a video of {area} pixels; cut it, or choose a larger size")
    return width, height


def stretched(pixels: np.ndarray, size: Size) -> np.ndarray:
    """[H, W, 3] resized to `size` without cutting, as Wan's own program does: the sizes have nearly the same shape."""
    import cv2

    method = cv2.INTER_AREA if size[1] < pixels.shape[0] else cv2.INTER_CUBIC
    resized: np.ndarray = cv2.resize(pixels, size, interpolation=method)
    return resized


def mask_latents(path: str, size: Size) -> Tensor:
    """A mask image -> [H/8, W/8] in 0..1: white where the control image counts."""
    import numpy as np
    import torch
    from PIL import Image

    grey = Image.fromarray(fit(read(path), size)).convert("L").resize((size[0] // 8, size[1] // 8), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(grey)).float() / 255.0
