"""The names of FramePack's layers in LoRA files: those that diffusers has for HunyuanVideo (github.com/lllyasviel/FramePack)."""

from __future__ import annotations

from ..hunyuan_video.lora_names import DIFFUSERS

NAMING = DIFFUSERS
SAID = ("framepack",)
