"""The images and videos of a request as the tensors a cached batch would have."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ...dataset.images import fit
from ...encoders.wan_vae import WanVAE
from ...inference.request_media import first_frames, read
from . import image_latents
from .encode import grey_latents, load_clip, load_vae
from .fitting import has_extra_end
from .one_frame import OneFrame, condition

if TYPE_CHECKING:
    from ...encoders.clip_vision import ClipVision
    from ..card import Task
    from ..request import SampleRequest
    from .settings import WanSettings


class WanConditionEncoder:
    """Start, end and control images and control videos, encoded by the VAE and, for Wan2.1, by CLIP."""

    def __init__(self, vae: WanVAE, clip: ClipVision | None, task: Task) -> None:
        self.vae, self.clip, self.task = vae, clip, task

    @classmethod
    def load(cls, settings: WanSettings, device: torch.device, task: Task) -> WanConditionEncoder:
        """From `--vae` and, where the task needs it, `--clip`."""
        clip = load_clip(settings.images, device) if task.start_image and task.image_encoder else None
        return cls(load_vae(settings.vae, device), clip, task)

    def encode(self, request: SampleRequest) -> dict[str, Tensor]:
        """{"latents_image": [20, F', H/8, W/8], "clip": [tokens, D], "latents_control": [16, F', H/8, W/8], "f_indices": [F']}, of these
        what the task takes, in float32."""
        made: dict[str, Tensor] = {}
        if request.one_frame is not None:
            made |= self._one_frame(request, OneFrame.parse(request.one_frame))
        elif self.task.start_image:
            made["latents_image"] = self._start_image(request)
        if self.clip is not None:
            made["clip"] = self._looked_at(self.clip, request)
        if self.task.control and request.images.control_video:
            size = request.width, request.height
            video = first_frames(request.images.control_video, size, request.frames, "the control video")
            made["latents_control"] = self.vae.encode(self._video(video))[0].float()
        return made

    def _start_image(self, request: SampleRequest) -> Tensor:
        first, last = request.images.start, request.images.end
        assert first is not None  # a fitted request has it
        start = self._image(first, request)
        end = None if last is None else self._image(last, request)
        if end is None or not has_extra_end(request, self.task):
            return image_latents.start_latents(self.vae, start, request.frames, end)[0].float()
        latents = [image_latents.start_latents(self.vae, image, frames) for image, frames in ((start, request.frames), (end, 1))]
        return torch.cat(latents, dim=2)[0].float()

    def _one_frame(self, request: SampleRequest, settings: OneFrame) -> dict[str, Tensor]:
        size = request.width, request.height
        controls = [self._video(fit(read(path), size)) for path in request.images.controls]
        masks = [image_latents.mask_latents(path, size) for path in request.images.masks]
        latents = [self.vae.encode(control)[0].float() for control in controls]
        grey = grey_latents(self.vae, controls[0].shape, {}).float()
        indices = torch.tensor(settings.positions, dtype=torch.int32)
        return {"latents_image": condition(settings, latents, grey, masks), "f_indices": indices}

    def _looked_at(self, clip: ClipVision, request: SampleRequest) -> Tensor:
        """Token features of the start image, and behind them of the end image where the model was made for both. One-frame requests
        without a start image show their control images instead, as in training."""
        start, end = request.images.start, request.images.end
        shown = [start] if start else list(request.images.controls)
        if start and end and self.task.last_frame:
            shown.append(end)
        views = [image_latents.to_video(read(path)[None, None], clip.device, torch.float32)[:, :, 0] for path in shown]
        return torch.cat([clip.features(view)[0] for view in views]).float()

    def _image(self, path: str, request: SampleRequest) -> Tensor:
        """[1, 3, 1, H, W] in -1..1, brought to the size of the request."""
        bring = fit if request.fixed_size else image_latents.stretched
        return self._video(bring(read(path), (request.width, request.height)))

    def _video(self, pixels: np.ndarray) -> Tensor:
        """uint8 [H, W, 3] or [F, H, W, 3] -> [1, 3, F, H, W] in -1..1."""
        return image_latents.to_video(pixels.reshape(1, -1, *pixels.shape[-3:]), self.vae.device, self.vae.dtype)
