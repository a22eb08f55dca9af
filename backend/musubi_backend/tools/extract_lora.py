"""`extract_lora`: the difference of two checkpoints as a LoRA of a given rank, with the error of each layer measured."""

from __future__ import annotations

import logging
from argparse import Namespace
from pathlib import Path

import torch
from torch import Tensor

from ..architectures import cards
from ..counted import counted
from ..device import pick_device
from ..errors import UserError
from ..lora import layer_names
from ..lora.base import Base
from ..lora.factors import nearest
from ..lora.result import Losses, save_lora, watched
from ..weights.arrays import is_float
from ..weights.dtypes import dtype_named
from ..weights.safetensors_file import split_files
from ..weights.scales import dequantised
from ..weights.streamed_file import refuse_inputs
from .settings import ExtractSettings

logger = logging.getLogger(__name__)

_SHOWN = 4


def run(args: Namespace) -> None:
    """Write `--tuned` - `--base` as `--output`. UserError when they are not of one model, or equal."""
    settings = ExtractSettings.read(args)
    refuse_inputs([settings.output], [settings.base, settings.tuned], "--output")
    device = pick_device(settings.device)
    losses = Losses()
    layers: dict[str, dict[str, Tensor]] = {}
    with Base.open(settings.base) as base, Base.open(settings.tuned) as tuned:
        refuse_inputs([settings.output], [*split_files(base.path), *split_files(tuned.path)], "--output")
        pairs = _pairs(base, tuned)
        naming = base.naming()
        left: list[str] = []
        for own, (first, second) in watched(pairs, "extracting"):
            path, _, leaf = own.rpartition(".") if own.endswith((".weight", ".bias")) else (own, "", "table")
            difference = _dense(tuned, second, device) - _dense(base, first, device)
            if not difference.any():
                continue
            matrix = leaf == "weight" and difference.ndim >= 2
            if not matrix and not settings.biases:
                left.append(own)
                continue
            parts = layers.setdefault(_native(path, naming), {})
            if not matrix:
                parts["diff_b" if leaf == "bias" else "diff"] = difference.cpu()
                continue
            factors = nearest(difference.flatten(1), settings.rank)
            losses.add(path, factors)
            parts |= {name: part.cpu() for name, part in factors.parts(difference.shape[1:]).items()}
    if not layers:
        raise UserError(f"{settings.base} and {settings.tuned} have the same weights: there is nothing to extract")
    if left:
        logger.warning(
            "%d changed biases, norms and tables are left out, such as %s; --biases takes them in", len(left), ", ".join(left[:_SHOWN])
        )
    save_lora(Path(settings.output), layers, _metadata(naming), dtype_named(settings.save_precision, "--save_precision"))
    print(f"extracted {len(layers)} of {counted(len(pairs), 'layer')}", flush=True)
    losses.report(settings.rank)


def _pairs(base: Base, tuned: Base) -> dict[str, tuple[str, str]]:
    """Name without prefix -> its names in both files, of all floating point tensors."""
    mine, theirs = (
        {checkpoint.own(name): name for name in checkpoint.specs if name not in checkpoint.scaled} for checkpoint in (base, tuned)
    )
    common = {own: (name, theirs[own]) for own, name in mine.items() if own in theirs and is_float(base.specs[name][0])}
    if not common:
        raise UserError(f"{base.path} and {tuned.path} have no tensor in common: they are of different models, or named differently")
    for own, (name, other) in common.items():
        first, second = base.specs[name][1], tuned.specs[other][1]
        if first != second:
            raise UserError(f"{own} is {list(first)} in {base.path} and {list(second)} in {tuned.path}: they are of different models")
    alone = len(mine.keys() ^ theirs.keys())
    if alone:
        logger.warning("%s in one of the two files only and left out", counted(alone, "tensor is", "tensors are"))
    return common


def _dense(checkpoint: Base, name: str, device: torch.device) -> Tensor:
    scale = checkpoint.scales.get(name)
    return dequantised(checkpoint.tensor(name).to(device), checkpoint.tensor(scale).to(device) if scale else None, torch.float32)


def _native(path: str, naming: str) -> str:
    """The path in the original naming of the architecture, where it only differs by name."""
    native = layer_names.own(naming)
    found = layer_names.find(path) if native else None
    return layer_names.names_of(found.place, native)[0] if found and layer_names.has_naming(found.place, native) else path


def _metadata(naming: str) -> dict[str, str]:
    card = cards().get(layer_names.own(naming))
    return {"ss_base_model_version": card.name, "ss_network_module": card.network_module} if card else {}
