"""Which tensors of a file are fp8 weights, and which scale belongs to which. Standard library only.

What is read, always as weight * scale:

plain          fp8 without a scale (Kijai's and ComfyUI's `..._fp8_e4m3fn.safetensors`)
`fp8_scaled`   ComfyUI until 2025: a marker `scaled_fp8`, per layer `scale_weight` and sometimes `scale_input`
`comfy_quant`  ComfyUI since then: per layer `weight_scale`, perhaps `input_scale`, and a JSON text `comfy_quant`
musubi-tuner   `scale_weight` with a scale per row [out, 1] or per block of a row [out, blocks, 1]
HunyuanVideo   scales in a second file; `weights.loader` gives them the names above

Scales of inputs belong to fp8 matrix products and are not needed here. Other formats (nf4, nvfp4, mxfp8, int8) are rejected.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import UserError
from .safetensors_file import TensorInfo

EIGHT_BIT_FLOATS = ("F8_E4M3", "F8_E5M2")
_PLAIN_FLOATS = ("F32", "BF16", "F16")

_SCALE = re.compile(r"(?P<layer>.*)\.(scale_weight|weight_scale)")
_UNUSED = re.compile(r"(.*\.)?(scale_input|input_scale|comfy_quant|scaled_fp8)")
_OTHER_FORMATS = re.compile(
    r".*\.(weight_scale_2|pre_quant_scale|qweight|qzeros|scales|g_idx|absmax|quant_map|quant_state\..*|nested_absmax|nested_quant_map)"
    r"|.*\.weight\.(absmax|quant_map|nested_absmax|nested_quant_map|quant_state\..*)"
)


@dataclass(frozen=True)
class Sorted:
    """The tensors of a file that are the model's, and for those with a scale the name of the tensor that holds it."""

    tensors: dict[str, TensorInfo]
    scales: dict[str, str]


def sort(tensors: Mapping[str, TensorInfo], path: Path) -> Sorted:
    """Take scales and markers out of a file's tensors. UserError for quantised weights of formats that are not read."""
    scales = {}
    for name in tensors:
        match = _SCALE.fullmatch(name)
        if match is not None and f"{match['layer']}.weight" in tensors:
            scales[f"{match['layer']}.weight"] = name
    kept = {name: info for name, info in tensors.items() if name not in scales.values() and not _UNUSED.fullmatch(name)}
    for name, info in kept.items():
        if _OTHER_FORMATS.fullmatch(name):
            raise unread(path, name, info.dtype)
        if info.dtype.startswith(("F8_", "F6_", "F4")) and info.dtype not in EIGHT_BIT_FLOATS:
            raise unread(path, name, info.dtype)
        if is_matrix(name, info.shape) and not info.dtype.startswith(("F", "BF")):
            raise unread(path, name, info.dtype)
    for weight, scale in scales.items():
        for name, dtypes in ((weight, (*EIGHT_BIT_FLOATS, *_PLAIN_FLOATS)), (scale, _PLAIN_FLOATS)):
            if tensors[name].dtype not in dtypes:
                raise unread(path, name, tensors[name].dtype)
        _check_shape(path, weight, tensors[weight].shape, scale, tensors[scale].shape)
    return Sorted(kept, scales)


def _check_shape(path: Path, weight: str, shape: tuple[int, ...], scale: str, found: tuple[int, ...]) -> None:
    """One number for all, one per row, or one per equal part of a row."""
    whole = all(size == 1 for size in found)
    by_rows = len(shape) == 2 and found[:1] == shape[:1] and found[-1:] == (1,)
    rows = by_rows and len(found) == 2
    blocks = by_rows and len(found) == 3 and found[1] > 0 and shape[1] % found[1] == 0
    if not (whole or rows or blocks):
        raise UserError(f"{path}: {scale} {list(found)} does not fit {weight} {list(shape)}; use the bf16 or fp16 version of this model")


def is_matrix(name: str, shape: Sequence[int]) -> bool:
    """Whether a tensor is what is multiplied with, no table of tokens or positions."""
    return name.endswith(".weight") and len(shape) > 1


def unread(path: Path, name: str, dtype: str) -> UserError:
    """What to say of a file with such a tensor."""
    return UserError(
        f"{path} holds weights quantised in a way that is not read ({name}, {dtype}): only fp8 (plain and scaled) is; "
        "use such a file, or the bf16 or fp16 version of this model"
    )
