"""From a weight file and the arguments to a frozen transformer: what every architecture's loading has in common."""

from __future__ import annotations

import logging
from argparse import Namespace
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Any

import torch

from ..device import computed_in
from ..errors import UserError
from ..layers.attention import check_mode
from ..lora.merging import LoRAMerge
from ..memory.plan import MemoryPlan
from ..memory.settings import MemorySettings
from ..weights.loader import Weights, load_into
from ..weights.quantised import EIGHT_BIT_FLOATS
from ..weights.safetensors_file import TORCH_DTYPES
from .precision import asked_precision, check_precision

if TYPE_CHECKING:
    from torch import nn

    from .card import Card

logger = logging.getLogger(__name__)

_SHORT = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32", None: "fp8"}
_ATTENTION = {
    "torch": "torch", "sdpa": "torch", "flash": "flash", "flash2": "flash", "flash3": "flash3", "xformers": "xformers", "sageattn": "sage",
}  # fmt: skip


def load_frozen(
    model: nn.Module,
    weights: Weights,
    args: Namespace,
    card: Card,
    device: torch.device,
    dtype: torch.dtype,
    *,
    rename: Callable[[str], str | None] | None = None,
    optional: Collection[str] = (),
    home: torch.device | None = None,
) -> Any:
    """Fill `model` (built on "meta") from `weights`, with `--lora_weight` or `--base_weights` merged, the attention chosen and what
    `memory.plan` offers; in eval mode on `device`, where it will compute, or on `home` until then. Merged and quantised on `device`.

    rename, optional: as in `load_into`.
    UserError for a file that is incomplete or of another model, and for LoRAs that do not fit.
    """
    mode, split = attention_of(args)
    check_mode(mode, dtype)
    merge = lora_merge(args, card)
    if merge is not None:
        merge.check({rename(name) or name if rename else name: info.shape for name, info in weights.header.tensors.items()})
    plan = memory_plan(args)
    plan.prepare(model, weights, card, device, rename)
    logger.info("loading %s (%s) as %s", weights.path, card.title, str(dtype).removeprefix("torch."))
    offloaded = home is not None and home.type == "cpu" and device.type != "meta"
    stay = set(model.state_dict(keep_vars=True)) if offloaded else plan.stay(model)
    load_into(model, weights, device, dtype, transform=merge, rename=rename, optional=optional, stay=stay)
    plan.finish(model, home or device)
    switches: Any = model
    switches.set_attention(mode, split)
    return model.eval()


def memory_plan(args: Namespace) -> MemoryPlan:
    """What was chosen; a model that is only merged and saved is kept whole."""
    return MemoryPlan() if getattr(args, "save_merged_model", None) else MemoryPlan.chosen(MemorySettings.read(args))


def file_dtype(weights: Weights, card: Card) -> torch.dtype | None:
    """dtype of the whole file, by its deciding tensor; None for fp8, in which nothing is computed. UserError where there is
    no such tensor, or its dtype is of no use."""
    tensor = next((name for name in card.dtype_tensors if name in weights.header.tensors), card.dtype_tensors[0])
    info = weights.header.tensors.get(tensor)
    if info is not None and info.dtype in EIGHT_BIT_FLOATS:
        return None
    name = TORCH_DTYPES.get(info.dtype) if info else None
    dtype: torch.dtype | None = getattr(torch, name) if name else None
    if dtype not in (torch.float16, torch.bfloat16, torch.float32):
        found = info.dtype if info else "missing"
        raise UserError(f"{weights.path}: {tensor} ({found}) has no usable dtype; use a bf16, fp16 or fp32 file")
    return dtype


def training_dtype(stored: torch.dtype | None, args: Namespace, card: Card, *, unset: torch.dtype) -> torch.dtype:
    """What a trainer computes in, by `--mixed_precision`: that, or with "auto" what the file has (bfloat16 where it has not 16 bits).

    stored: as `file_dtype` gives it. unset: with "no". UserError where the two do not go together.
    """
    precision = asked_precision(args.mixed_precision)
    check_precision(_SHORT.get(stored), precision, card, args.dit)
    if precision == "no":
        return unset
    if precision == "auto":
        wanted = torch.float16 if stored == torch.float16 else torch.bfloat16
        return wanted if torch.cuda.is_available() else _on_cpu(stored, wanted)
    return torch.float16 if precision == "fp16" else torch.bfloat16


def generating_dtype(stored: torch.dtype | None, args: Namespace, on_gpu: torch.dtype = torch.bfloat16) -> torch.dtype:
    """What a generator computes in. stored: as `file_dtype` gives it. on_gpu: what it is where 16 bits gain something."""
    gpu = torch.cuda.is_available() and not str(getattr(args, "device", None) or "cuda").startswith("cpu")
    return on_gpu if gpu else _on_cpu(stored, on_gpu)


def _on_cpu(stored: torch.dtype | None, wanted: torch.dtype) -> torch.dtype:
    """As `computed_in`, and float32 for files in float32, where 16 bits gain nothing."""
    return torch.float32 if stored == torch.float32 else computed_in(wanted, torch.device("cpu"))


def lora_merge(args: Namespace, card: Card) -> LoRAMerge | None:
    """The LoRAs that `--lora_weight` and `--base_weights` add to the weights; None without any."""
    files = list(getattr(args, "lora_weight", None) or [])
    multipliers = _numbers(getattr(args, "lora_multiplier", None))
    base = list(getattr(args, "base_weights", None) or [])
    if base:
        multipliers = [*multipliers, *[1.0] * (len(files) - len(multipliers)), *_numbers(getattr(args, "base_weights_multiplier", None))]
        files += base
    if not files:
        return None
    include, exclude = getattr(args, "include_patterns", None) or (), getattr(args, "exclude_patterns", None) or ()
    if getattr(args, "exclude_single_blocks", False):
        exclude = ["single_blocks"] * len(files)
    expert, skip = getattr(args, "lora_expert", ""), getattr(args, "skip_mismatched", False)
    return LoRAMerge(files, multipliers, include, exclude, card.id, expert, skip)


def attention_of(args: Namespace) -> tuple[str, bool]:
    """(mode, split) from training's switches or generation's `--attn_mode`."""
    named = getattr(args, "attn_mode", None)
    if named is None:
        switches = {"sdpa": "torch", "flash_attn": "flash", "flash3": "flash3", "xformers": "xformers"}
        named = next((mode for switch, mode in switches.items() if getattr(args, switch, False)), "torch")
    mode = _ATTENTION.get(named)
    if mode is None:
        raise UserError(f"--attn_mode {named} is not supported; choose one of {', '.join(_ATTENTION)}")
    return mode, bool(getattr(args, "split_attn", False))


def _numbers(value: float | Sequence[float] | None) -> list[float]:
    if value is None:
        return []
    return [float(value)] if isinstance(value, (int, float)) else [float(number) for number in value]
