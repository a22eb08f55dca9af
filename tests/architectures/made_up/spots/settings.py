"""The settings that Spots reads by itself."""

from __future__ import annotations

from dataclasses import dataclass

from ..settings import ArchitectureSettings


@dataclass(frozen=True)
class SpotsSettings(ArchitectureSettings):
    model_version: str = "plain"
    alphabet: str | None = None
    dictionary: str | None = None
    control_image_path: tuple[str, ...] | None = None
