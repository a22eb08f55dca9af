"""Wan's encoders behind the architecture protocol: frames to latents, captions to umt5 features, latents to video."""

from __future__ import annotations

import logging
from argparse import Namespace
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ...encoders.umt5 import UMT5
from ...encoders.wan_vae import WanVAE
from ...errors import UserError
from ...weights.dtypes import dtype_named
from .card import CARD

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from ...dataset.decoding import DecodedEntry

logger = logging.getLogger(__name__)


class WanLatentEncoder:
    """Caches the latents that text-to-video training needs."""

    def __init__(self, vae: WanVAE) -> None:
        self.vae = vae

    @classmethod
    def load(cls, args: Namespace, device: torch.device) -> WanLatentEncoder:
        """From `--vae`, `--vae_dtype` and `--vae_cache_cpu`. UserError for a missing or wrong file."""
        return cls(_vae(args, device))

    def encode(self, batch: Sequence[DecodedEntry]) -> list[list[dict[str, Tensor]]]:
        """One file per entry: {"latents": [16, (F-1)/4+1, H/8, W/8]}."""
        import numpy as np
        import torch

        pixels = torch.from_numpy(np.stack([entry.pixels for entry in batch])).to(self.vae.device).permute(0, 4, 1, 2, 3)
        video = pixels.to(self.vae.dtype) / 127.5 - 1.0
        return [[{"latents": latents}] for latents in self.vae.encode(video.contiguous())]


class WanLatentDecoder:
    def __init__(self, vae: WanVAE) -> None:
        self.vae = vae

    @classmethod
    def load(cls, args: Namespace, device: torch.device) -> WanLatentDecoder:
        """As `WanLatentEncoder.load`."""
        return cls(_vae(args, device))

    def decode(self, latents: Tensor) -> Tensor:
        """Normalised latents [16, F', H', W'] -> float32 video [3, 4(F'-1)+1, 8H', 8W'] in 0..1 on the CPU."""
        video = self.vae.decode(latents[None])[0]
        return video.add_(1.0).div_(2.0).clamp_(0.0, 1.0).cpu()


class WanTextEncoder:
    def __init__(self, encoder: UMT5) -> None:
        self.encoder = encoder

    @classmethod
    def load(cls, args: Namespace, device: torch.device) -> WanTextEncoder:
        """From `--t5`, computing in bfloat16. UserError for a missing or wrong file, and when there is no tokenizer for it."""
        import torch

        if not args.t5:
            raise UserError("--t5 is missing: give the umt5-xxl text encoder file, e.g. umt5_xxl_fp16.safetensors")
        logger.info("Loading T5: %s", args.t5)
        return cls(UMT5.load(args.t5, device, torch.bfloat16, fp8=bool(getattr(args, "fp8_t5", False))))

    def encode(self, captions: Sequence[str]) -> list[dict[str, Tensor]]:
        """{"varlen_t5": [L, dim] bfloat16} per caption, L <= 512 tokens without padding."""
        return [{"varlen_t5": features} for features in self.encoder.encode(captions)]


def _vae(args: Namespace, device: torch.device) -> WanVAE:
    if not args.vae:
        raise UserError("--vae is missing: give the Wan2.1 VAE file, e.g. wan_2.1_vae.safetensors")
    dtype = dtype_named(getattr(args, "vae_dtype", None) or CARD.latent_dtype, "--vae_dtype")
    logger.info("Loading VAE model from %s", args.vae)
    cache_on_cpu = bool(getattr(args, "vae_cache_cpu", False))
    return WanVAE.load(args.vae, device, dtype, cache_on_cpu=cache_on_cpu)
