"""From `--dit` and the other arguments to a loaded Wan transformer."""

from __future__ import annotations

from argparse import Namespace

import torch

from ...errors import UserError
from ...weights.loader import Weights, open_weights
from ...weights.recognise import expect
from ..loading import file_dtype, load_frozen
from .card import CARD
from .keys import DTYPE_TENSOR, PREFIXES, geometry_of
from .model import WanTransformer


def compute_dtype(args: Namespace) -> torch.dtype:
    """dtype of the frozen weights and the arithmetic, from the header of `--dit` and `--mixed_precision`.

    16-bit files decide, and mixed precision must agree; float32 files follow mixed precision. Where there is no such flag
    (generation), float32 files run in bf16 on a GPU and as they are on the CPU, and 8-bit files in bf16.
    """
    stored = file_dtype(_open(args), DTYPE_TENSOR)
    if stored is None and not hasattr(args, "mixed_precision"):
        return torch.bfloat16
    precision = getattr(args, "mixed_precision", None) or "no"
    if stored in (torch.float16, torch.bfloat16):
        short = "fp16" if stored == torch.float16 else "bf16"
        if precision not in ("no", short):
            raise UserError(f"DiT weights are in {short}, mixed precision must be {short} or no, not {precision} ({args.dit})")
        return stored
    if precision != "no":
        return torch.float16 if precision == "fp16" else torch.bfloat16
    on_gpu = torch.cuda.is_available() and not str(getattr(args, "device", None) or "cuda").startswith("cpu")
    return torch.bfloat16 if on_gpu and not hasattr(args, "mixed_precision") else torch.float32


def load_transformer(args: Namespace, device: torch.device, dtype: torch.dtype) -> WanTransformer:
    """The frozen transformer of `--task` from `--dit` on `device`, in eval mode, with `--lora_weight` or `--base_weights` merged.

    UserError for a file of another kind, another task, incomplete or quantised in an unknown way, and for LoRAs that do not fit.
    """
    weights = _open(args)
    try:
        geometry = geometry_of(weights.header, args.task)
    except UserError as error:
        raise UserError(f"{args.dit}: {error}") from None
    with torch.device("meta"):
        model = WanTransformer(geometry)
    loaded: WanTransformer = load_frozen(model, weights, args, CARD, device, dtype)
    return loaded


def _open(args: Namespace) -> Weights:
    if not args.dit:
        raise UserError("--dit is required: the Wan transformer's weight file")
    expect(args.dit, "wan_transformer", "--dit")
    return open_weights(args.dit, PREFIXES)
