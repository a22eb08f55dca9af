"""From `--dit` and the other arguments to a loaded FramePack transformer."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

import torch

from ...errors import UserError
from ...weights.loader import Weights, open_weights
from ...weights.recognise import expect
from ..loading import file_dtype, generating_dtype, load_frozen, training_dtype
from .card import CARD
from .geometry import PREFIXES, FramePackGeometry, geometry_of
from .model import FramePackTransformer


def compute_dtype(args: Namespace) -> torch.dtype:
    """dtype of the frozen weights and the arithmetic.

    Training: `--mixed_precision`; with "no" bfloat16, as musubi-tuner always has it. Generating: see `generating_dtype`.
    UserError for files that cannot be computed with.
    """
    stored = file_dtype(_open(args), CARD)
    if hasattr(args, "mixed_precision"):
        return training_dtype(stored, args, CARD, unset=torch.bfloat16)
    return generating_dtype(stored, args)


def load_transformer(args: Namespace, device: torch.device, dtype: torch.dtype) -> FramePackTransformer:
    """The frozen transformer from `--dit` on `device`, in eval mode, with `--lora_weight` or `--base_weights` merged.

    UserError for a file of another kind or incomplete, and for LoRAs that do not fit.
    """
    weights = _open(args)
    with torch.device("meta"):
        model = FramePackTransformer(geometry(args, weights))
    loaded: FramePackTransformer = load_frozen(model, weights, args, CARD, device, dtype)
    threshold = getattr(args, "rope_scaling_timestep_threshold", None)
    if threshold is not None:
        loaded.rope_scaling = (threshold, args.rope_scaling_factor)
    return loaded


def geometry(args: Namespace, weights: Weights | None = None) -> FramePackGeometry:
    """Sizes of the transformer in `--dit`, from its header. UserError when they cannot be."""
    try:
        return geometry_of((weights or _open(args)).header)
    except UserError as error:
        raise UserError(f"{args.dit}: {error}") from None


def _open(args: Namespace) -> Weights:
    return open_weights(weight_file(args), PREFIXES)


def weight_file(args: Namespace) -> str:
    """The file behind `--dit`, which may name a folder. UserError when there is none, or it is of another kind."""
    if not args.dit:
        raise UserError("--dit is required: the FramePack transformer's weight file")
    path = Path(args.dit)
    if path.is_dir():
        files = sorted(path.glob("*.safetensors"))
        if not files:
            raise UserError(f"--dit {path}: no .safetensors file in this folder")
        path = files[0]
    expect(path, "framepack_transformer", "--dit")
    return str(path)
