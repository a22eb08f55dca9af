"""From `--dit` and the other settings to a loaded Wan transformer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from ...errors import UserError
from ...layers.experts import Experts
from ...weights.loader import Weights, open_weights
from ...weights.recognise import expect
from ..card import HIGH, LOW
from ..loading import file_dtype, generating_dtype, load_frozen, lora_merge, training_dtype
from .card import CARD
from .fitting import boundary
from .geometry import PREFIXES, WanGeometry, geometry_of
from .model import WanTransformer

if TYPE_CHECKING:
    from ..settings import LoRASettings
    from .settings import WanSettings


def trained_dtype(settings: WanSettings, precision: str) -> torch.dtype:
    """dtype of the frozen weights and the arithmetic of a training, from the header of `--dit`.

    precision: as `--mixed_precision`; it must be the file's where that has 16 bits. "no" is the file's dtype, bfloat16 for fp8 files.
    """
    check_experts(settings)
    stored = file_dtype(_open(settings.dit), CARD)
    return training_dtype(stored, precision, CARD, settings.dit or "", unset=stored or torch.bfloat16)


def generated_dtype(settings: WanSettings, device: torch.device) -> torch.dtype:
    """The same in generating: that of a 16-bit file, else bfloat16; see `generating_dtype`."""
    check_experts(settings)
    stored = file_dtype(_open(settings.dit), CARD)
    return generating_dtype(stored, device, torch.float16 if stored == torch.float16 else torch.bfloat16)


def load_transformer(settings: WanSettings, device: torch.device, dtype: torch.dtype) -> WanTransformer | Experts:
    """The frozen transformer of `--task` from `--dit` on `device`, in eval mode, with `--lora_weight` or `--base_weights` merged; with
    `--dit_high_noise` both experts as a pair.

    UserError for a file of another kind, another task, incomplete or quantised in an unknown way, and for LoRAs that do not fit.
    """
    experts = settings.experts
    if not experts.dit_high_noise:
        return _load(settings, _One(settings.dit, settings.loras), device, dtype)
    share = boundary(settings)
    assert share is not None  # `check_experts` has rejected it
    low, high = _One(settings.dit, settings.loras, LOW), _high_noise(settings)
    for one in (low, high):
        _geometry(settings.task, one.dit, _open(one.dit))
    return Experts(
        {LOW: lambda home: _load(settings, low, device, dtype, home), HIGH: lambda home: _load(settings, high, device, dtype, home)},
        share, device, offload=experts.offload_inactive_dit,
        pinned=settings.loading.memory.use_pinned_memory_for_block_swap,
        lazy=experts.lazy_loading and not settings.loading.save_merged_model,
    )  # fmt: skip


def check_experts(settings: WanSettings) -> None:
    """UserError for two experts without a boundary, or of different dtypes. Reads headers."""
    experts = settings.experts
    if not experts.dit_high_noise:
        return
    if boundary(settings) is None:
        raise UserError(f"--timestep_boundary is required: task {settings.task} is not one of two experts; use --task t2v-A14B or i2v-A14B")
    if experts.lora_per_expert:
        _check_both_are_trained(settings)
    stored = [file_dtype(_open(dit), CARD) for dit in (settings.dit, experts.dit_high_noise)]
    if stored[0] != stored[1]:
        names = " and ".join(str(dtype or "fp8").removeprefix("torch.") for dtype in stored)
        raise UserError(f"--dit and --dit_high_noise have different dtypes ({names}); use two files of the same")


def _check_both_are_trained(settings: WanSettings) -> None:
    meeting, experts = 1000 * (boundary(settings) or 0), settings.experts
    low, high = experts.min_timestep or 0, 1000 if experts.max_timestep is None else experts.max_timestep
    if not low < meeting < high:
        idle = LOW if low >= meeting else HIGH
        raise UserError(
            f"--lora_per_expert: timesteps {low} to {high} are all on one side of the experts' boundary, {meeting:g}, so the {idle} noise "
            "expert would learn nothing; train the other one alone with --dit"
        )


@dataclass(frozen=True)
class _One:
    """One of the transformers, and the LoRAs merged into it. expert: `LOW` or `HIGH` of two."""

    dit: str | None
    loras: LoRASettings
    expert: str = ""


def _high_noise(settings: WanSettings) -> _One:
    experts = settings.experts
    loras = settings.loras.changed(lora_weight=experts.lora_weight_high_noise, lora_multiplier=experts.lora_multiplier_high_noise)
    return _One(experts.dit_high_noise, loras, HIGH)


def _load(settings: WanSettings, one: _One, device: torch.device, dtype: torch.dtype, home: torch.device | None = None) -> WanTransformer:
    weights = _open(one.dit)
    with torch.device("meta"):
        model = WanTransformer(_geometry(settings.task, one.dit, weights))
    patterns = settings.patterns
    merge = lora_merge(one.loras, CARD, include=patterns.include_patterns, exclude=patterns.exclude_patterns, expert=one.expert)
    loaded: WanTransformer = load_frozen(model, weights, settings.loading, merge, CARD, device, dtype, home=home)
    return loaded


def geometry(settings: WanSettings) -> WanGeometry:
    """Sizes of the transformer in `--dit`, from its header. UserError when it is not of `--task`."""
    return _geometry(settings.task, settings.dit, _open(settings.dit))


def _geometry(task: str, dit: str | None, weights: Weights) -> WanGeometry:
    try:
        return geometry_of(weights.header, task)
    except UserError as error:
        raise UserError(f"{dit}: {error}") from None


def _open(dit: str | None) -> Weights:
    if not dit:
        raise UserError("--dit is required: the Wan transformer's weight file")
    expect(dit, "wan_transformer", "--dit")
    return open_weights(dit, PREFIXES)
