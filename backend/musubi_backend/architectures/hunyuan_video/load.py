"""From `--dit` and the other settings to a loaded HunyuanVideo transformer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ...errors import UserError
from ...weights.dtypes import dtype_named
from ...weights.loader import Weights, open_weights
from ...weights.recognise import expect
from ..loading import file_dtype, generating_dtype, load_frozen, lora_merge, training_dtype
from .card import CARD
from .geometry import PREFIXES, HunyuanGeometry, geometry_of, original_name
from .model import HunyuanTransformer

if TYPE_CHECKING:
    from .settings import HunyuanSettings


def trained_dtype(settings: HunyuanSettings, precision: str) -> torch.dtype:
    """dtype of the frozen weights and the arithmetic of a training.

    precision: as `--mixed_precision`; with "no" it is `--dit_dtype`, else bfloat16; with "auto" `--dit_dtype`, else what the file says.
    UserError for files that cannot be computed with.
    """
    stored = file_dtype(_open(settings), CARD)
    if settings.dit_dtype and precision not in ("fp16", "bf16"):
        return dtype_named(settings.dit_dtype, "--dit_dtype")
    return training_dtype(stored, precision, CARD, settings.dit or "", unset=torch.bfloat16)


def generated_dtype(settings: HunyuanSettings, device: torch.device) -> torch.dtype:
    """The same in generating; see `generating_dtype`."""
    return generating_dtype(file_dtype(_open(settings), CARD), device)


def load_transformer(settings: HunyuanSettings, device: torch.device, dtype: torch.dtype) -> HunyuanTransformer:
    """The frozen transformer from `--dit` on `device`, in eval mode, with `--lora_weight` or `--base_weights` merged.

    UserError for a file of another kind, incomplete or quantised, one that `--dit_in_channels` does not fit, and for LoRAs that do not.
    """
    weights = _open(settings)
    with torch.device("meta"):
        model = HunyuanTransformer(geometry(settings, weights))
    files = settings.loras.lora_weight or ()
    merge = lora_merge(settings.loras, CARD, exclude=["single_blocks"] * len(files) if settings.exclude_single_blocks else None)
    loaded: HunyuanTransformer = load_frozen(model, weights, settings.loading, merge, CARD, device, dtype, rename=original_name)
    return loaded


def geometry(settings: HunyuanSettings, weights: Weights | None = None) -> HunyuanGeometry:
    """Sizes of the transformer in `--dit`, from its header. UserError when they cannot be, or are not what `--dit_in_channels` says."""
    try:
        found = geometry_of((weights or _open(settings)).header)
    except UserError as error:
        raise UserError(f"{settings.dit}: {error}") from None
    wanted = settings.dit_in_channels
    if wanted is not None and wanted != found.in_dim:
        raise UserError(
            f"--dit_in_channels {wanted}: {settings.dit} takes {found.in_dim} channels, so it is "
            f"{'an image-to-video' if found.takes_image else 'a text-to-video'} model; use --dit_in_channels {found.in_dim}"
        )
    if found.in_dim not in (CARD.latent_channels, 2 * CARD.latent_channels):
        raise UserError(
            f"{settings.dit} takes {found.in_dim} channels; text-to-video models take 16 and SkyReels' image-to-video models 32"
        )
    return found


def _open(settings: HunyuanSettings) -> Weights:
    if not settings.dit:
        raise UserError("--dit is required: the HunyuanVideo transformer's weight file")
    expect(settings.dit, "hunyuan_video_transformer", "--dit")
    return open_weights(settings.dit, PREFIXES)
