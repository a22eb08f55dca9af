"""What the header of a transformer's file says about `--mixed_precision`. Standard library only: the nodes ask before anything runs."""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import UserError
from ..weights.recognise import PICKLE_SUFFIXES
from ..weights.safetensors_file import PathLike, read_model_header
from .card import Card

_NAMES = {"F16": "fp16", "BF16": "bf16", "F32": "fp32"}


def stored_precision(path: PathLike, card: Card) -> str | None:
    """ "fp16", "bf16", "fp32", or "fp8" for anything smaller; None where it is not known (PyTorch files). UserError for files that
    cannot be read."""
    if Path(path).suffix.lower() in PICKLE_SUFFIXES:
        return None
    tensors = read_model_header(path).tensors
    return next((_NAMES.get(info.dtype, "fp8") for name, info in tensors.items() if name.endswith(card.dtype_tensors)), None)


def asked_precision(mixed_precision: str | None) -> str:
    """`--mixed_precision`; where it is not given, what accelerate's launcher was given, else "no"."""
    return mixed_precision or os.environ.get("ACCELERATE_MIXED_PRECISION", "no")


def check_precision(stored: str | None, precision: str | None, card: Card, path: PathLike) -> None:
    """UserError where `--mixed_precision` contradicts the file and the architecture computes in the file's own format."""
    if card.keeps_16_bits and stored in ("fp16", "bf16") and precision not in (None, "no", "auto", stored):
        raise UserError(f"DiT weights are in {stored}, mixed precision must be auto, {stored} or no, not {precision} ({path})")


def followed(stored: str | None) -> str:
    """What "auto" is on a GPU, in words that musubi-tuner knows."""
    return "fp16" if stored == "fp16" else "bf16"
