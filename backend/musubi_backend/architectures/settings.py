"""The settings that every architecture reads by itself, and those of concerns that several have. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..memory.settings import MemorySettings
from ..options.settings import Settings


@dataclass(frozen=True)
class AttentionSettings(Settings):
    """A generator names one, a trainer has switches."""

    attn_mode: str = "torch"
    sdpa: bool = False
    flash_attn: bool = False
    flash3: bool = False
    xformers: bool = False
    split_attn: bool = False


@dataclass(frozen=True)
class LoadingSettings(Settings):
    """How a frozen transformer is held and computed. One that is only merged and saved is kept whole."""

    attention: AttentionSettings = AttentionSettings()
    memory: MemorySettings = field(default_factory=MemorySettings)
    save_merged_model: str | None = None


@dataclass(frozen=True)
class LoRASettings(Settings):
    """The LoRAs that are merged into the frozen weights: a generator's, or those that a training is based on."""

    lora_weight: tuple[str, ...] | None = None
    lora_multiplier: tuple[float, ...] | None = None
    base_weights: tuple[str, ...] | None = None
    base_weights_multiplier: tuple[float, ...] | None = None
    skip_mismatched: bool = False


@dataclass(frozen=True)
class PatternSettings(Settings):
    """Which modules of each LoRA are used."""

    include_patterns: tuple[str, ...] | None = None
    exclude_patterns: tuple[str, ...] | None = None


@dataclass(frozen=True)
class ArchitectureSettings(Settings):
    """What every architecture reads. A family adds its own options in a subclass, and has no fields for those that it lacks."""

    dit: str | None = None
    loading: LoadingSettings = LoadingSettings()
    loras: LoRASettings = LoRASettings()
