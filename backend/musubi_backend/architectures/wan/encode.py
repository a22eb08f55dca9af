"""Wan's encoders behind the architecture protocol: frames to latents, captions to umt5 features, latents to video."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ... import job
from ...device import computed_in
from ...encoders.umt5 import UMT5
from ...encoders.wan_vae import WanVAE
from ...errors import UserError
from ...weights.dtypes import kept_and_computed
from .cache_forms import settings_of
from .card import CARD
from .image_latents import start_latents, to_video
from .one_frame import condition

if TYPE_CHECKING:
    from ...dataset.decoding import DecodedEntry
    from ...encoders.clip_vision import ClipVision
    from .settings import ImageSettings, TextSettings, VAESettings

logger = logging.getLogger(__name__)


class WanLatentEncoder:
    """Caches the latents of items, of their control media and, for image-to-video, of their first (and last) frame."""

    def __init__(self, vae: WanVAE, clip: ClipVision | None = None, *, start_image: bool = False, last_frame: bool = False) -> None:
        self.vae, self.clip = vae, clip
        self.start_image, self.last_frame = start_image, last_frame

    @classmethod
    def load(cls, vae: VAESettings, images: ImageSettings, device: torch.device) -> WanLatentEncoder:
        """From `--vae`, `--clip` and their companions. UserError for a missing or wrong file."""
        clip = load_clip(images, device) if images.clip else None
        return cls(load_vae(vae, device), clip, start_image=images.starts_from_image, last_frame=images.last_frame)

    def encode(self, batch: Sequence[DecodedEntry]) -> list[list[dict[str, Tensor]]]:
        """One file per entry: {"latents": [16, F', H/8, W/8]}, "latents_image" [20, F', H/8, W/8] and "clip" [257, D] of the first frame
        ([2, 257, D] of first and last), "latents_control" like the latents."""
        video = self._video([entry.pixels for entry in batch])
        cached = {"latents": self.vae.encode(video)}
        if self.start_image:
            first, last = video[:, :, :1], video[:, :, -1:] if self.last_frame else None
            known = cached["latents"] if video.shape[2] == 1 else None  # a single frame is its own start image
            cached["latents_image"] = start_latents(self.vae, first, video.shape[2], last, known)
            if self.clip is not None:
                cached["clip"] = self._looked_at(self.clip, first, last)
        if batch[0].controls:
            cached["latents_control"] = self.vae.encode(self._video([entry.controls[0] for entry in batch]))
        return [[{name: tensors[index] for name, tensors in cached.items()}] for index in range(len(batch))]

    def _video(self, pixels: Sequence[np.ndarray]) -> Tensor:
        return to_video(np.stack(pixels), self.vae.device, self.vae.dtype)

    @staticmethod
    def _looked_at(clip: ClipVision, first: Tensor, last: Tensor | None) -> Tensor:
        features = clip.features(first[:, :, 0])
        return features if last is None else torch.stack([features, clip.features(last[:, :, 0])], dim=1)


class OneFrameEncoder:
    """Caches one-frame items: the target and its control images as the frames of a very short video."""

    def __init__(self, vae: WanVAE, clip: ClipVision | None) -> None:
        self.vae, self.clip = vae, clip
        self._greys: dict[torch.Size, Tensor] = {}

    @classmethod
    def load(cls, vae: VAESettings, images: ImageSettings, device: torch.device) -> OneFrameEncoder:
        """As `WanLatentEncoder.load`."""
        return cls(load_vae(vae, device), load_clip(images, device) if images.clip else None)

    def encode(self, batch: Sequence[DecodedEntry]) -> list[list[dict[str, Tensor]]]:
        """Per entry {"latents": [16, n, H/8, W/8], "latents_image": [20, n, H/8, W/8], "f_indices": [n], "clip": [n - 1, 257, D]}; n - 1 is
        the number of control images, which are encoded one by one because the VAE would take them for a video."""
        return [[self._one(entry)] for entry in batch]

    def _one(self, entry: DecodedEntry) -> dict[str, Tensor]:
        settings = settings_of(entry.entry.item)
        target, *images = (to_video(pixels[None], self.vae.device, self.vae.dtype) for pixels in (entry.pixels, *entry.controls))
        controls = [self.vae.encode(image)[0] for image in images]
        cached = {
            "latents": settings.arranged(controls, self.vae.encode(target)[0]),
            "latents_image": condition(settings, controls, grey_latents(self.vae, target.shape, self._greys)),
            "f_indices": torch.tensor(settings.positions, dtype=torch.int32),
        }
        if self.clip is not None:
            cached["clip"] = self.clip.features(torch.cat(images)[:, :, 0])
        return cached


class WanLatentDecoder:
    """trimmed: how many frames at the end are left out."""

    def __init__(self, vae: WanVAE, trimmed: int = 0) -> None:
        self.vae, self.trimmed = vae, trimmed

    @classmethod
    def load(cls, vae: VAESettings, device: torch.device, trimmed: int) -> WanLatentDecoder:
        """As `WanLatentEncoder.load`."""
        return cls(load_vae(vae, device), trimmed)

    def decode(self, latents: Tensor) -> Tensor:
        """Normalised latents [16, F', H', W'] -> float32 video [3, 4(F'-1)+1 - trimmed, 8H', 8W'] in 0..1 on the CPU."""
        video = self.vae.decode(latents[None])[0]
        return video.add_(1.0).div_(2.0).clamp_(0.0, 1.0).cpu()[:, : video.shape[1] - self.trimmed]


class WanTextEncoder:
    def __init__(self, encoder: UMT5) -> None:
        self.encoder = encoder

    @classmethod
    def load(cls, settings: TextSettings, device: torch.device) -> WanTextEncoder:
        """From `--t5`; its features are kept in bfloat16. UserError for a missing or wrong file, and when there is no tokenizer for it."""
        if not settings.t5:
            raise UserError("--t5 is missing: give the umt5-xxl text encoder file, e.g. umt5_xxl_fp16.safetensors")
        logger.info("Loading T5: %s", settings.t5)
        job.phase("loading the text encoder")
        kept = torch.bfloat16
        fp8, offload = settings.fp8_t5, settings.offload_text_encoder
        return cls(UMT5.load(settings.t5, device, computed_in(kept, device), kept=kept, fp8=fp8, offload=offload))

    def encode(self, captions: Sequence[str]) -> list[dict[str, Tensor]]:
        """{"varlen_t5": [L, dim] bfloat16} per caption, L <= 512 tokens without padding."""
        return [{"varlen_t5": features} for features in self.encoder.encode(captions)]

    def cut(self, captions: Sequence[str]) -> list[str]:
        """As `UMT5.cut`."""
        return self.encoder.cut(captions)


def load_vae(settings: VAESettings, device: torch.device) -> WanVAE:
    """The VAE of `--vae` in `--vae_dtype`. UserError for a missing or wrong file and an unknown dtype."""
    if not settings.vae:
        raise UserError("--vae is missing: give the Wan2.1 VAE file, e.g. wan_2.1_vae.safetensors")
    kept, dtype = kept_and_computed(settings.vae_dtype, CARD.latent_dtype, "--vae_dtype", device)
    logger.info("Loading VAE model from %s", settings.vae)
    job.phase("loading the VAE")
    return WanVAE.load(settings.vae, device, dtype, kept=kept, cache_on_cpu=settings.vae_cache_cpu)


def load_clip(settings: ImageSettings, device: torch.device) -> ClipVision:
    """The image encoder of `--clip`. UserError for a missing or wrong file."""
    from ...encoders.clip_vision import ClipVision

    if not settings.clip:
        raise UserError("--clip is missing: give the CLIP image encoder's file, e.g. clip_vision_h.safetensors")
    logger.info("Loading CLIP: %s", settings.clip)
    return ClipVision.load(settings.clip, device)


def grey_latents(vae: WanVAE, shape: torch.Size, known: dict[torch.Size, Tensor]) -> Tensor:
    """Latents [16, 1, H/8, W/8] of an even grey image of `shape` [B, 3, 1, H, W], looked up in `known` first."""
    if shape not in known:
        known[shape] = vae.encode(torch.zeros(1, *shape[1:], device=vae.device, dtype=vae.dtype))[0]
    return known[shape]
