"""From `--dit` and the other arguments to a loaded Wan transformer."""

from __future__ import annotations

import logging
from argparse import Namespace
from collections.abc import Sequence

import torch

from ...errors import UserError
from ...layers.attention import check_mode
from ...layers.lora_files import LoRAMerge
from ...weights.loader import Weights, load_into, open_weights
from ...weights.recognise import expect
from ...weights.safetensors_file import TORCH_DTYPES
from .keys import DTYPE_TENSOR, PREFIXES, geometry_of, original_path
from .model import WanTransformer

logger = logging.getLogger(__name__)

_ATTENTION = {"torch": "torch", "sdpa": "torch", "flash": "flash", "flash2": "flash", "flash3": "flash3", "xformers": "xformers"}


def compute_dtype(args: Namespace) -> torch.dtype:
    """dtype of the frozen weights and the arithmetic, from the header of `--dit` and `--mixed_precision`.

    16-bit files decide, and mixed precision must agree; float32 files follow mixed precision. Where there is no such flag
    (generation), float32 files run in bf16 on a GPU and as they are on the CPU.
    """
    file_dtype = _file_dtype(_open(args))
    precision = getattr(args, "mixed_precision", None) or "no"
    if file_dtype in (torch.float16, torch.bfloat16):
        short = "fp16" if file_dtype == torch.float16 else "bf16"
        if precision not in ("no", short):
            raise UserError(f"DiT weights are in {short}, mixed precision must be {short} or no, not {precision} ({args.dit})")
        return file_dtype
    if precision != "no":
        return torch.float16 if precision == "fp16" else torch.bfloat16
    on_gpu = torch.cuda.is_available() and not str(getattr(args, "device", None) or "cuda").startswith("cpu")
    return torch.bfloat16 if on_gpu and not hasattr(args, "mixed_precision") else torch.float32


def load_transformer(args: Namespace, device: torch.device, dtype: torch.dtype) -> WanTransformer:
    """The frozen transformer of `--task` from `--dit` on `device`, in eval mode, with `--lora_weight` or `--base_weights` merged.

    UserError for a file of another kind, another task, incomplete or quantised, and for LoRAs that do not fit.
    """
    weights = _open(args)
    try:
        geometry = geometry_of(weights.header, args.task)
    except UserError as error:
        raise UserError(f"{args.dit}: {error}") from None
    merge = _merge(args)
    if merge is not None:
        merge.check(weights.header.tensors)
    with torch.device("meta"):
        model = WanTransformer(geometry)
    logger.info("loading %s (%s) as %s", weights.path, args.task, str(dtype).removeprefix("torch."))
    load_into(model, weights, device, dtype, transform=merge)
    mode, split = _attention(args)
    model.set_attention(mode, split)
    return model.eval()


def _open(args: Namespace) -> Weights:
    if not args.dit:
        raise UserError("--dit is required: the Wan transformer's weight file")
    expect(args.dit, "wan_transformer", "--dit")
    return open_weights(args.dit, PREFIXES)


def _file_dtype(weights: Weights) -> torch.dtype:
    info = weights.header.tensors.get(DTYPE_TENSOR)
    name = TORCH_DTYPES.get(info.dtype) if info else None
    dtype: torch.dtype | None = getattr(torch, name) if name else None
    if dtype not in (torch.float16, torch.bfloat16, torch.float32):
        found = info.dtype if info else "missing"
        raise UserError(f"{weights.path}: {DTYPE_TENSOR} ({found}) has no usable dtype; use a bf16, fp16 or fp32 file")
    return dtype


def _merge(args: Namespace) -> LoRAMerge | None:
    files = list(getattr(args, "lora_weight", None) or [])
    multipliers = _numbers(getattr(args, "lora_multiplier", None))
    base = list(getattr(args, "base_weights", None) or [])
    if base:
        multipliers = [*multipliers, *[1.0] * (len(files) - len(multipliers)), *_numbers(getattr(args, "base_weights_multiplier", None))]
        files += base
    if not files:
        return None
    include, exclude = getattr(args, "include_patterns", None) or (), getattr(args, "exclude_patterns", None) or ()
    return LoRAMerge(files, multipliers, include, exclude, original_path)


def _numbers(value: float | Sequence[float] | None) -> list[float]:
    if value is None:
        return []
    return [float(value)] if isinstance(value, (int, float)) else [float(number) for number in value]


def _attention(args: Namespace) -> tuple[str, bool]:
    """(mode, split) from training's switches or generation's `--attn_mode`."""
    named = getattr(args, "attn_mode", None)
    if named is None:
        switches = {"sdpa": "torch", "flash_attn": "flash", "flash3": "flash3", "xformers": "xformers"}
        named = next((mode for switch, mode in switches.items() if getattr(args, switch, False)), "torch")
    mode = _ATTENTION.get(named)
    if mode is None:
        raise UserError(f"--attn_mode {named} is not supported; choose one of {', '.join(_ATTENTION)}")
    check_mode(mode)
    return mode, bool(getattr(args, "split_attn", False))
