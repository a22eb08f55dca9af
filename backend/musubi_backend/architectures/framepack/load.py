"""From `--dit` and the other settings to a loaded FramePack transformer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ...errors import UserError
from ...weights.loader import Weights, open_weights
from ...weights.recognise import expect
from ..loading import file_dtype, generating_dtype, load_frozen, lora_merge, training_dtype
from .card import CARD
from .geometry import PREFIXES, FramePackGeometry, geometry_of
from .model import FramePackTransformer

if TYPE_CHECKING:
    from .settings import FramePackSettings


def trained_dtype(settings: FramePackSettings, precision: str) -> torch.dtype:
    """dtype of the frozen weights and the arithmetic of a training.

    precision: as `--mixed_precision`; "no" is bfloat16, as musubi-tuner always has it. UserError for files that cannot be computed with.
    """
    return training_dtype(file_dtype(_open(settings), CARD), precision, CARD, settings.dit or "", unset=torch.bfloat16)


def generated_dtype(settings: FramePackSettings, device: torch.device) -> torch.dtype:
    """The same in generating; see `generating_dtype`."""
    return generating_dtype(file_dtype(_open(settings), CARD), device)


def load_transformer(settings: FramePackSettings, device: torch.device, dtype: torch.dtype) -> FramePackTransformer:
    """The frozen transformer from `--dit` on `device`, in eval mode, with `--lora_weight` or `--base_weights` merged.

    UserError for a file of another kind or incomplete, and for LoRAs that do not fit.
    """
    weights = _open(settings)
    with torch.device("meta"):
        model = FramePackTransformer(geometry(settings, weights))
    patterns = settings.patterns
    merge = lora_merge(settings.loras, CARD, include=patterns.include_patterns, exclude=patterns.exclude_patterns)
    loaded: FramePackTransformer = load_frozen(model, weights, settings.loading, merge, CARD, device, dtype)
    if settings.rope_scaling_timestep_threshold is not None:
        loaded.rope_scaling = (settings.rope_scaling_timestep_threshold, settings.rope_scaling_factor)
    return loaded


def geometry(settings: FramePackSettings, weights: Weights | None = None) -> FramePackGeometry:
    """Sizes of the transformer in `--dit`, from its header. UserError when they cannot be."""
    try:
        return geometry_of((weights or _open(settings)).header)
    except UserError as error:
        raise UserError(f"{settings.dit}: {error}") from None


def _open(settings: FramePackSettings) -> Weights:
    return open_weights(weight_file(settings), PREFIXES)


def weight_file(settings: FramePackSettings) -> str:
    """The file behind `--dit`, which may name a folder. UserError when there is none, or it is of another kind."""
    if not settings.dit:
        raise UserError("--dit is required: the FramePack transformer's weight file")
    path = Path(settings.dit)
    if path.is_dir():
        files = sorted(path.glob("*.safetensors"))
        if not files:
            raise UserError(f"--dit {path}: no .safetensors file in this folder")
        path = files[0]
    expect(path, "framepack_transformer", "--dit")
    return str(path)
