"""HunyuanVideo's encoders behind the architecture protocol: frames to latents, captions to Llama and CLIP features, latents to video.

musubi-tuner caches a sample of the VAE's posterior, drawn from whatever state its random generator has. Here the noise follows from
the cache file's name, so that caching again, in other batches or on another device gives the same sample.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ... import job
from ...encoders.clip_text import MAX_TOKENS as CLIP_TOKENS
from ...encoders.clip_text import ClipText
from ...encoders.hunyuan_vae import DEFAULT_TILE, SCALING_FACTOR, HunyuanVAE
from ...encoders.llama import MAX_TOKENS as LLAMA_TOKENS
from ...encoders.llama import LlamaEncoder
from ...errors import UserError
from ...weights.dtypes import kept_and_computed
from .card import CARD

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Generator, Tensor, nn

    from ...dataset.decoding import DecodedEntry
    from ..card import Card
    from .settings import TextSettings, VAESettings

logger = logging.getLogger(__name__)


class HunyuanLatentEncoder:
    def __init__(self, vae: HunyuanVAE, stored: torch.dtype) -> None:
        self.vae, self.stored = vae, stored

    @classmethod
    def load(cls, settings: VAESettings, device: torch.device) -> HunyuanLatentEncoder:
        """From `--vae` and its settings. UserError for a missing or wrong file."""
        return cls(*vae_and_kept(settings, device, CARD))

    def encode(self, batch: Sequence[DecodedEntry]) -> list[list[dict[str, Tensor]]]:
        """One file per entry: {"latents": [16, (F-1)/4+1, H/8, W/8]}, not scaled."""
        generators = [generator_of(entry.entry.latent_paths(CARD)[0].name) for entry in batch]
        latents = self.vae.encode(video_of([entry.pixels for entry in batch]), generators)
        return [[{"latents": one}] for one in latents.to(self.stored)]


class HunyuanLatentDecoder:
    def __init__(self, vae: HunyuanVAE) -> None:
        self.vae = vae

    @classmethod
    def load(cls, settings: VAESettings, device: torch.device) -> HunyuanLatentDecoder:
        """As `HunyuanLatentEncoder.load`."""
        return cls(load_vae(settings, device, CARD))

    @property
    def tiled(self) -> nn.Module:
        """What decodes tiles, as `HunyuanVAE.tiled`."""
        return self.vae.tiled

    def decode(self, latents: Tensor) -> Tensor:
        """Scaled latents [16, F', H', W'] -> float32 video [3, 4(F'-1)+1, 8H', 8W'] in 0..1 on the CPU."""
        return images_of(self.vae.decode(latents[None] / SCALING_FACTOR)[0])


class HunyuanTextEncoder:
    def __init__(self, llama: LlamaEncoder, clip: ClipText) -> None:
        self.llama, self.clip = llama, clip

    @classmethod
    def load(cls, settings: TextSettings, named: str | None, device: torch.device) -> HunyuanTextEncoder:
        """From `--text_encoder1`, `--text_encoder2`, `--text_encoder_dtype` (`named`) and `--fp8_llm`. UserError for a missing or wrong
        file, and when there is no tokenizer for it."""
        return cls(*load_text_encoders(settings, device, *kept_and_computed(named, "float16", "--text_encoder_dtype", device)))

    def encode(self, captions: Sequence[str]) -> list[dict[str, Tensor]]:
        """Per caption {"llm" [256, dim], "llm_mask" [256], "clipL" [dim], "clipL_mask" [77]}; features of padding are zero."""
        pairs = zip(self.llama.encode(captions), self.clip.encode(captions), strict=True)
        return [_text_entry(features, pooled, count) for features, (pooled, count) in pairs]

    def cut(self, captions: Sequence[str]) -> list[str]:
        """Per caption what either encoder leaves out of it, "" where that is nothing."""
        return both_cut(self.llama.cut(captions), self.clip.cut(captions))


def both_cut(llama: Sequence[str], clip: Sequence[str]) -> list[str]:
    """What two encoders leave out of the same captions, as one text each."""
    return ["; ".join(filter(None, pair)) for pair in zip(llama, clip, strict=True)]


def _text_entry(features: Tensor, pooled: Tensor, clip_count: int) -> dict[str, Tensor]:
    llm, mask = padded(features, LLAMA_TOKENS)
    return {"llm": llm, "llm_mask": mask.long(), "clipL": pooled, "clipL_mask": _first(clip_count, CLIP_TOKENS).long()}


def padded(features: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """features [L, dim] -> ([length, dim] with zeros after them, bool mask [length] of where they are)."""
    rows = features.new_zeros(length, features.shape[-1])
    rows[: len(features)] = features
    return rows, _first(len(features), length)


def _first(count: int, length: int) -> Tensor:
    import torch

    return torch.arange(length) < count


def vae_and_kept(settings: VAESettings, device: torch.device, card: Card) -> tuple[HunyuanVAE, torch.dtype]:
    """(`load_vae`, the dtype of latents in caches: `--vae_dtype`, else the architecture's own)."""
    return load_vae(settings, device, card), _dtypes(settings, device, card)[0]


def load_vae(settings: VAESettings, device: torch.device, card: Card) -> HunyuanVAE:
    """The VAE of HunyuanVideo and FramePack from `--vae`, `--vae_dtype`, `--vae_tiling`, `--vae_spatial_tile_sample_min_size` and
    `--vae_chunk_size`. UserError for a missing or wrong file."""
    if not settings.vae:
        raise UserError(f"--vae is missing: give the {card.title} VAE file, e.g. hunyuan_video_vae_bf16.safetensors")
    tile = settings.vae_spatial_tile_sample_min_size or (DEFAULT_TILE if settings.vae_tiling else None)
    dtype = _dtypes(settings, device, card)[1]
    logger.info("Loading VAE model from %s", settings.vae)
    job.phase("loading the VAE")
    return HunyuanVAE.load(settings.vae, device, dtype, tile=tile, chunk=settings.vae_chunk_size)


def _dtypes(settings: VAESettings, device: torch.device, card: Card) -> tuple[torch.dtype, torch.dtype]:
    return kept_and_computed(settings.vae_dtype, card.latent_dtype, "--vae_dtype", device)


def load_text_encoders(
    settings: TextSettings, device: torch.device, kept: torch.dtype | None = None, dtype: torch.dtype | None = None
) -> tuple[LlamaEncoder, ClipText]:
    """Llama and CLIP-L from `--text_encoder1`, `--text_encoder2` and `--fp8_llm`; dtypes as `model_files.dtypes_for`."""
    if not settings.text_encoder1:
        raise UserError("--text_encoder1 is missing: give the text encoder, e.g. llava_llama3_fp16.safetensors")
    if not settings.text_encoder2:
        raise UserError("--text_encoder2 is missing: give the text encoder, e.g. clip_l.safetensors")
    logger.info("loading text encoder 1: %s", settings.text_encoder1)
    job.phase("loading the text encoder")
    fp8, offload = settings.fp8_llm, settings.offload_text_encoder
    llama = LlamaEncoder.load(settings.text_encoder1, device, dtype, kept=kept, fp8=fp8, offload=offload)
    logger.info("loading text encoder 2: %s", settings.text_encoder2)
    return llama, ClipText.load(settings.text_encoder2, device, dtype, kept=kept)


def video_of(pixels: Sequence[np.ndarray]) -> Tensor:
    """uint8 [F, H, W, 3] arrays of one shape -> float32 [B, 3, F, H, W] in -1..1."""
    import numpy as np
    import torch

    return (torch.from_numpy(np.stack(pixels)).permute(0, 4, 1, 2, 3).float() / 127.5 - 1.0).contiguous()


def images_of(video: Tensor) -> Tensor:
    """A video [3, F, H, W] in -1..1 -> in 0..1, on the CPU."""
    return video.div(2).add_(0.5).clamp_(0.0, 1.0).cpu()


def generator_of(name: str) -> Generator:
    """A random generator on the CPU that depends on a name only."""
    import torch

    return torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(name.encode("utf-8", "replace")).digest()[:7], "big"))
