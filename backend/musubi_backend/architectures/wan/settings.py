"""The settings that Wan reads by itself. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass, field

from ...inference.settings import RequestImageSettings
from ...options.settings import Settings
from ..settings import ArchitectureSettings, PatternSettings


@dataclass(frozen=True)
class VAESettings(Settings):
    """The VAE."""

    vae: str | None = None
    vae_dtype: str | None = None
    vae_cache_cpu: bool = False


@dataclass(frozen=True)
class TextSettings(Settings):
    """The text encoder."""

    t5: str | None = None
    fp8_t5: bool = False
    offload_text_encoder: bool = False


@dataclass(frozen=True)
class ImageSettings(Settings):
    """The image encoder, and which images are cached with an item. one_frame: a trainer's samples are also made so."""

    clip: str | None = None
    i2v: bool = False
    last_frame: bool = False
    one_frame: bool = False

    @property
    def starts_from_image(self) -> bool:
        """Are the latents of start images cached? `--clip` and `--last_frame` ask for them too."""
        return bool(self.i2v or self.clip or self.last_frame)


@dataclass(frozen=True)
class ExpertSettings(Settings):
    """The second transformer, of high noise. timestep_boundary: a sigma, or a timestep up to 1000."""

    dit_high_noise: str | None = None
    timestep_boundary: float | None = None
    offload_inactive_dit: bool = False
    lazy_loading: bool = False
    lora_weight_high_noise: tuple[str, ...] | None = None
    lora_multiplier_high_noise: tuple[float, ...] | None = None
    lora_per_expert: bool = False
    min_timestep: int | None = None
    max_timestep: int | None = None


@dataclass(frozen=True)
class GuidanceSettings(Settings):
    """In which steps guidance is skipped, skip-layer guidance, and the guidance of the high-noise expert."""

    cfg_skip_mode: str = "none"
    cfg_apply_ratio: float | None = None
    slg_layers: str | None = None
    slg_scale: float = 3.0
    slg_start: float = 0.0
    slg_end: float = 0.3
    slg_mode: str | None = None
    guidance_scale_high_noise: float | None = None


@dataclass(frozen=True)
class VideoSettings(Settings):
    """What a generator makes, besides what all make. trim_tail_frames: cut off the end before saving."""

    sample_solver: str = "unipc"
    cpu_noise: bool = False
    control_path: str | None = None
    trim_tail_frames: int = 0
    images: RequestImageSettings = field(default_factory=RequestImageSettings)


@dataclass(frozen=True)
class WanSettings(ArchitectureSettings):
    """All of them."""

    task: str = "t2v-14B"
    vae: VAESettings = VAESettings()
    text: TextSettings = TextSettings()
    images: ImageSettings = ImageSettings()
    experts: ExpertSettings = ExpertSettings()
    patterns: PatternSettings = field(default_factory=PatternSettings)
    guidance: GuidanceSettings = GuidanceSettings()
    video: VideoSettings = VideoSettings()
