"""The settings that HunyuanVideo reads by itself, and those that it shares with its relatives. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass

from ...options.settings import Settings
from ..settings import ArchitectureSettings


@dataclass(frozen=True)
class VAESettings(Settings):
    """The VAE, and how it saves memory. vae_chunk_size: columns; vae_spatial_tile_sample_min_size: pixels, None for the usual tiles."""

    vae: str | None = None
    vae_dtype: str | None = None
    vae_tiling: bool = False
    vae_chunk_size: int | None = None
    vae_spatial_tile_sample_min_size: int | None = None


@dataclass(frozen=True)
class TextSettings(Settings):
    """Llama and CLIP-L."""

    text_encoder1: str | None = None
    text_encoder2: str | None = None
    fp8_llm: bool = False
    offload_text_encoder: bool = False


@dataclass(frozen=True)
class HunyuanSettings(ArchitectureSettings):
    """All of them. guidance_scale: in training the embedded guidance, which a generator has `embedded_cfg_scale` for."""

    guidance_scale: float = 1.0
    embedded_cfg_scale: float = 6.0
    vae: VAESettings = VAESettings()
    text: TextSettings = TextSettings()
    text_encoder_dtype: str | None = None
    dit_dtype: str | None = None
    dit_in_channels: int | None = None
    exclude_single_blocks: bool = False
    video_path: str | None = None
    strength: float = 0.8
