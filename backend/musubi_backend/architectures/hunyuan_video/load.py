"""From `--dit` and the other arguments to a loaded HunyuanVideo transformer."""

from __future__ import annotations

from argparse import Namespace

import torch

from ...errors import UserError
from ...weights.dtypes import dtype_named
from ...weights.loader import Weights, open_weights
from ...weights.recognise import expect
from ..loading import file_dtype, generating_dtype, load_frozen, training_dtype
from ..precision import asked_precision
from .card import CARD
from .geometry import PREFIXES, HunyuanGeometry, geometry_of, original_name
from .model import HunyuanTransformer


def compute_dtype(args: Namespace) -> torch.dtype:
    """dtype of the frozen weights and the arithmetic.

    Training: `--mixed_precision`; with "no" `--dit_dtype`, else bfloat16; with "auto" `--dit_dtype`, else what the file says.
    Generating: see `generating_dtype`. UserError for files that cannot be computed with.
    """
    stored = file_dtype(_open(args), CARD)
    if not hasattr(args, "mixed_precision"):
        return generating_dtype(stored, args)
    if args.dit_dtype and asked_precision(args.mixed_precision) not in ("fp16", "bf16"):
        return dtype_named(args.dit_dtype, "--dit_dtype")
    return training_dtype(stored, args, CARD, unset=torch.bfloat16)


def load_transformer(args: Namespace, device: torch.device, dtype: torch.dtype) -> HunyuanTransformer:
    """The frozen transformer from `--dit` on `device`, in eval mode, with `--lora_weight` or `--base_weights` merged.

    UserError for a file of another kind, incomplete or quantised, one that `--dit_in_channels` does not fit, and for LoRAs that do not.
    """
    weights = _open(args)
    with torch.device("meta"):
        model = HunyuanTransformer(geometry(args, weights))
    loaded: HunyuanTransformer = load_frozen(model, weights, args, CARD, device, dtype, rename=original_name)
    return loaded


def geometry(args: Namespace, weights: Weights | None = None) -> HunyuanGeometry:
    """Sizes of the transformer in `--dit`, from its header. UserError when they cannot be, or are not what `--dit_in_channels` says."""
    try:
        found = geometry_of((weights or _open(args)).header)
    except UserError as error:
        raise UserError(f"{args.dit}: {error}") from None
    wanted = getattr(args, "dit_in_channels", None)
    if wanted is not None and wanted != found.in_dim:
        raise UserError(
            f"--dit_in_channels {wanted}: {args.dit} takes {found.in_dim} channels, so it is "
            f"{'an image-to-video' if found.takes_image else 'a text-to-video'} model; use --dit_in_channels {found.in_dim}"
        )
    if found.in_dim not in (CARD.latent_channels, 2 * CARD.latent_channels):
        raise UserError(f"{args.dit} takes {found.in_dim} channels; text-to-video models take 16 and SkyReels' image-to-video models 32")
    return found


def _open(args: Namespace) -> Weights:
    if not args.dit:
        raise UserError("--dit is required: the HunyuanVideo transformer's weight file")
    expect(args.dit, "hunyuan_video_transformer", "--dit")
    return open_weights(args.dit, PREFIXES)
