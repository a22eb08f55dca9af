"""Tensor names inside cache files, both ways (musubi-tuner's scheme).

Latents are stored as `{base}_{F}x{H}x{W}_{dtype}`, everything else as `{base}_{dtype}`; masks carry no dtype. In a latent file
F, H, W and the name of the floating dtype are always those of the main latents, even where a tensor differs (Wan's CLIP
features are float16 whatever their name says). `varlen_` marks tensors whose length differs from item to item.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

LATENTS = "latents"
VARIABLE_LENGTH = "varlen_"
_DTYPES = (
    "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu",
    "bfloat16", "float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "bool", "complex64",
)  # fmt: skip
_DTYPE = re.compile(rf"_(?:{'|'.join(_DTYPES)})$")
_SHAPE = re.compile(r"_\d+(?:x\d+)+$")


def stored_latent_name(base: str, sides: Sequence[int], dtype: str) -> str:
    """Name for a tensor of a latent file. sides: (F, H, W) or (H, W) of the main latents; dtype: as in the name."""
    if base.startswith(LATENTS):
        return f"{base}_{'x'.join(map(str, sides))}_{dtype}"
    return f"{base}_{dtype}"


def stored_text_name(base: str, dtype: str) -> str:
    """Name for a tensor of a text file."""
    return base if base.endswith("_mask") else f"{base}_{dtype}"


def without_dtype(name: str) -> str:
    """The stored name without its dtype; unchanged for masks and names without one."""
    return name if name.endswith("_mask") else _DTYPE.sub("", name)


def base_name(name: str) -> str:
    """What training calls the tensor: no `varlen_`, no dtype, and for latents no shape."""
    bare = without_dtype(name.removeprefix(VARIABLE_LENGTH))
    return _SHAPE.sub("", bare) if bare.startswith(f"{LATENTS}_") else bare


def is_variable_length(name: str) -> bool:
    """Is a batch of these a list instead of one stacked tensor?"""
    return name.startswith(VARIABLE_LENGTH)
