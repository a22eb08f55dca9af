"""The image or video a request starts from, as scaled latents."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...dataset.images import fit
from ...encoders.hunyuan_vae import SCALING_FACTOR, HunyuanVAE
from ...inference import request_media
from ...inference.sampling import SOURCE
from .card import CARD
from .encode import load_vae, video_of
from .fitting import FIRST_FRAME

if TYPE_CHECKING:
    import numpy as np

    from ..request import SampleRequest
    from .settings import VAESettings


class HunyuanConditionEncoder:
    """Loads the VAE when the first request needs it: text-to-video does not."""

    def __init__(self, settings: VAESettings, device: torch.device) -> None:
        self.settings, self.device = settings, device
        self.vae: HunyuanVAE | None = None

    def encode(self, request: SampleRequest) -> dict[str, Tensor]:
        """{"latents_image": [16, 1, H/8, W/8], "latents_source": [16, F', H/8, W/8]}, of these what the request has, in float32."""
        size = request.width, request.height
        made: dict[str, Tensor] = {}
        if request.images.start is not None:
            made[FIRST_FRAME] = self._latents(fit(request_media.read(request.images.start), size)[None], request.seed)
        if request.images.source_video is not None:
            frames = request_media.first_frames(request.images.source_video, size, request.frames, "the video to change")
            made[SOURCE] = self._latents(frames, request.seed)
        return made

    def _latents(self, frames: np.ndarray, seed: int) -> Tensor:
        """uint8 [F, H, W, 3] -> [16, F', H/8, W/8], a sample of the posterior that is the same for the same seed."""
        if self.vae is None:
            self.vae = load_vae(self.settings, self.device, CARD)
        return self.vae.encode(video_of([frames]), [torch.Generator().manual_seed(seed)])[0].float() * SCALING_FACTOR
