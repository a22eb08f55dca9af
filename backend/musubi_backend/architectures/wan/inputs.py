"""From the tensors of a batch (cached, or made for a request) to what the transformer is given besides noise and text."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from ...errors import UserError
from .geometry import MASK_CHANNELS

if TYPE_CHECKING:
    from ..card import Task
    from ..protocol import Batch


class ModelInputs(NamedTuple):
    """extra_channels [B, 20 or 32, F, H, W]; image [B, tokens, D]; frame_indices: positions in time; None where there are none."""

    extra_channels: Tensor | None
    image: Tensor | None
    frame_indices: list[int] | None


def model_inputs(batch: Batch, task: Task) -> ModelInputs:
    """`batch` has "latents_image" [B, 4 + 16, F, H, W] and "clip" [B, tokens, D] or [B, images, tokens, D] where the task starts
    from an image, "latents_control" [B, 16, F, H, W] where it follows a control video, and "f_indices" [B, F] for one-frame items."""
    channels = _tensor(batch, "latents_image") if task.start_image else None
    if task.control:
        control = _tensor(batch, "latents_control")
        given = torch.zeros_like(control) if channels is None else _given_frames(channels)
        channels = torch.cat([control, given], dim=1)
    image = None
    if task.start_image and task.image_encoder:
        image = _tensor(batch, "clip")
        image = image.flatten(1, 2) if image.ndim == 4 else image
    return ModelInputs(channels, image, _positions(batch))


def _given_frames(channels: Tensor) -> Tensor:
    """Mask and latents of a start image -> latents that are 0 in all frames but those an image was given for: Fun-Control models
    have no mask channels."""
    mask, latents = channels[:, :MASK_CHANNELS], channels[:, MASK_CHANNELS:]
    return latents * mask.amax(dim=1, keepdim=True)


def _positions(batch: Batch) -> list[int] | None:
    """musubi-tuner caches the positions of one-frame items and then trains without them, which is not what it generates with; here
    training uses them too."""
    if "f_indices" not in batch:
        return None
    indices = _tensor(batch, "f_indices")
    if (indices != indices[0]).any():
        raise UserError(
            f"items of one batch have different one-frame positions ({indices.tolist()}); cache them again, or use batch_size = 1"
        )
    positions: list[int] = indices[0].tolist()
    return positions


def _tensor(batch: Batch, name: str) -> Tensor:
    tensor = batch[name]
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} has no equal shapes")
    return tensor
