"""From a weight file and the settings to a frozen transformer: what every architecture's loading has in common."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Any

import torch

from ..device import computed_in, is_older
from ..errors import UserError
from ..layers.attention import check_mode, with_compiler
from ..lora.merging import LoRAMerge
from ..memory.plan import MemoryPlan
from ..weights.loader import Weights, load_into
from ..weights.quantised import EIGHT_BIT_FLOATS
from ..weights.safetensors_file import TORCH_DTYPES, PathLike
from .precision import check_precision

if TYPE_CHECKING:
    from torch import nn

    from .card import Card
    from .settings import AttentionSettings, LoadingSettings, LoRASettings

logger = logging.getLogger(__name__)

_SHORT = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32", None: "fp8"}
_ATTENTION = {
    "torch": "torch", "sdpa": "torch", "flash": "flash", "flash2": "flash", "flash3": "flash3", "xformers": "xformers", "sageattn": "sage",
}  # fmt: skip


def load_frozen(
    model: nn.Module,
    weights: Weights,
    settings: LoadingSettings,
    merge: LoRAMerge | None,
    card: Card,
    device: torch.device,
    dtype: torch.dtype,
    *,
    rename: Callable[[str], str | None] | None = None,
    optional: Collection[str] = (),
    home: torch.device | None = None,
) -> Any:
    """Fill `model` (built on "meta") from `weights`, with `merge` in them (`lora_merge`), the attention chosen and what `memory.plan`
    offers; in eval mode on `device`, where it will compute, or on `home` until then. Merged and quantised on `device`.

    rename, optional: as in `load_into`.
    UserError for a file that is incomplete or of another model, and for LoRAs that do not fit.
    """
    mode, split = attention_of(settings.attention)
    check_mode(mode, dtype, device)
    _warn_of_imitated(dtype, device)
    if merge is not None:
        merge.check({rename(name) or name if rename else name: info.shape for name, info in weights.header.tensors.items()})
    plan = memory_plan(settings)
    plan.prepare(model, weights, card, device, rename)
    logger.info("loading %s (%s) as %s", weights.path, card.title, str(dtype).removeprefix("torch."))
    offloaded = home is not None and home.type == "cpu" and device.type != "meta"
    stay = set(model.state_dict(keep_vars=True)) if offloaded else plan.stay(model)
    shards = plan.shards(model, device)
    part = None if shards is None else shards.part
    load_into(model, weights, device, dtype, transform=merge, rename=rename, optional=optional, stay=stay, part=part)
    plan.finish(model, home or device)
    switches: Any = model
    kept = settings.memory.keep_attention_blocks or settings.memory.offload_attention_blocks
    switches.set_attention(with_compiler(mode, split) if kept and plan.compilation is not None else mode, split)
    return model.eval()


def _warn_of_imitated(dtype: torch.dtype, device: torch.device) -> None:
    """Say what bfloat16 costs on a GPU without: PyTorch has no attention kernel for it there, and computes by the plain formula."""
    if dtype == torch.bfloat16 and is_older(device, (8, 0)):
        logger.warning(
            "%s has no bfloat16: products are slow, and attention takes memory for the scores of all pairs of tokens, which the memory "
            "plan does not count. Use an fp16 file of the model, whose precision is followed, where there is one",
            torch.cuda.get_device_name(device),
        )


def memory_plan(settings: LoadingSettings) -> MemoryPlan:
    """What was chosen; a model that is only merged and saved is kept whole."""
    return MemoryPlan() if settings.save_merged_model else MemoryPlan.chosen(settings.memory)


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


def training_dtype(stored: torch.dtype | None, precision: str, card: Card, path: PathLike, *, unset: torch.dtype) -> torch.dtype:
    """What a trainer computes in: `precision`, or with "auto" what the file has (bfloat16 where it has not 16 bits).

    stored: as `file_dtype` gives it. path: of the file, for messages. unset: with "no". UserError where the two do not go together.
    """
    check_precision(_SHORT.get(stored), precision, card, path)
    if precision == "no":
        return unset
    if precision == "auto":
        wanted = torch.float16 if stored == torch.float16 else torch.bfloat16
        return wanted if torch.cuda.is_available() else _on_cpu(stored, wanted)
    return torch.float16 if precision == "fp16" else torch.bfloat16


def generating_dtype(stored: torch.dtype | None, device: torch.device, on_gpu: torch.dtype = torch.bfloat16) -> torch.dtype:
    """What a generator computes in. stored: as `file_dtype` gives it. on_gpu: what it is where 16 bits gain something."""
    return on_gpu if device.type == "cuda" else _on_cpu(stored, on_gpu)


def _on_cpu(stored: torch.dtype | None, wanted: torch.dtype) -> torch.dtype:
    """As `computed_in`, and float32 for files in float32, where 16 bits gain nothing."""
    return torch.float32 if stored == torch.float32 else computed_in(wanted, torch.device("cpu"))


def lora_merge(
    loras: LoRASettings, card: Card, *, include: Sequence[str] | None = None, exclude: Sequence[str] | None = None, expert: str = ""
) -> LoRAMerge | None:
    """The LoRAs that `--lora_weight` and `--base_weights` add to the weights; None without any. include, exclude: a pattern of names for
    each file; expert: as in `LoRAMerge`."""
    files, multipliers = list(loras.lora_weight or ()), list(loras.lora_multiplier or ())
    if loras.base_weights:
        multipliers += [*[1.0] * (len(files) - len(multipliers)), *(loras.base_weights_multiplier or ())]
        files += loras.base_weights
    if not files:
        return None
    return LoRAMerge(files, multipliers, include or (), exclude or (), card.id, expert, loras.skip_mismatched)


def attention_of(settings: AttentionSettings) -> tuple[str, bool]:
    """(mode, split) from training's switches or generation's `--attn_mode`."""
    switches = {"torch": settings.sdpa, "flash": settings.flash_attn, "flash3": settings.flash3, "xformers": settings.xformers}
    named = next((mode for mode, chosen in switches.items() if chosen), settings.attn_mode)
    mode = _ATTENTION.get(named)
    if mode is None:
        raise UserError(f"--attn_mode {named} is not supported; choose one of {', '.join(_ATTENTION)}")
    return mode, settings.split_attn
