"""The settings of the two caching verbs. What decides the numbers in caches is the architecture's: it reads that by itself."""

from __future__ import annotations

from dataclasses import dataclass

from ..options.settings import Settings


@dataclass(frozen=True)
class CachingSettings(Settings):
    """Which items are encoded, where, and what becomes of those that are cached, unusable or gone."""

    dataset_config: str = ""
    device: str | None = None
    batch_size: int | None = None
    skip_existing: bool = False
    on_bad_items: str = "stop"
    keep_cache: bool = False


@dataclass(frozen=True)
class PreviewSettings(Settings):
    """`--debug_mode` and how it draws."""

    debug_mode: str | None = None
    console_width: int = 80
    console_back: str | None = None
    console_num_images: int | None = None


@dataclass(frozen=True)
class LatentSettings(Settings):
    """What caching latents reads besides."""

    caching: CachingSettings = CachingSettings()
    preview: PreviewSettings = PreviewSettings()
    num_workers: int | None = None
    disable_cudnn_backend: bool = False
