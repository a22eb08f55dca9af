"""The settings that FramePack reads by itself. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass, field

from ...inference.settings import RequestImageSettings
from ...options.settings import Settings
from ..hunyuan_video.settings import TextSettings, VAESettings
from ..settings import ArchitectureSettings, PatternSettings


@dataclass(frozen=True)
class ItemSettings(Settings):
    """What is cached of an item. f1, one_frame: training and its samples follow them too."""

    f1: bool = False
    one_frame: bool = False
    one_frame_no_2x: bool = False
    one_frame_no_4x: bool = False


@dataclass(frozen=True)
class SectionSettings(Settings):
    """How long a section is, and which sections make a video. latent_window_size: latent frames."""

    latent_window_size: int = 9
    bulk_decode: bool = False
    video_seconds: float = 5.0
    video_sections: int | None = None
    latent_paddings: str | None = None


@dataclass(frozen=True)
class MagCacheSettings(Settings):
    """MagCache is off without ratios."""

    magcache_mag_ratios: str | None = None
    magcache_retention_ratio: float = 0.2
    magcache_threshold: float = 0.24
    magcache_k: int = 6
    magcache_calibration: bool = False


@dataclass(frozen=True)
class FramePackSettings(ArchitectureSettings):
    """All of them. guidance_scale: in training the embedded guidance, which a generator has `embedded_cfg_scale` for."""

    guidance_scale: float = 1.0
    embedded_cfg_scale: float = 10.0
    guidance_rescale: float = 0.0
    rope_scaling_timestep_threshold: int | None = None
    rope_scaling_factor: float = 0.5
    vae: VAESettings = field(default_factory=VAESettings)
    text: TextSettings = field(default_factory=TextSettings)
    image_encoder: str | None = None
    custom_system_prompt: str | None = None
    items: ItemSettings = ItemSettings()
    sections: SectionSettings = SectionSettings()
    magcache: MagCacheSettings = MagCacheSettings()
    patterns: PatternSettings = field(default_factory=PatternSettings)
    images: RequestImageSettings = field(default_factory=RequestImageSettings)
    sample_solver: str = "unipc"
    one_frame_auto_resize: bool = False
    fps: int = 30
