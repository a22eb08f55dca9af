"""`combine_lora`: several LoRAs with strengths as one LoRA.

Without `--rank` the result is exact: its factors are those of all inputs side by side, so ranks add up. With it, each layer is the
nearest LoRA of that rank, and what that loses is reported.
"""

from __future__ import annotations

import json
import logging
from argparse import Namespace
from pathlib import Path
from typing import TypeAlias

import torch
from torch import Tensor

from ..architectures import same_layers
from ..counted import counted
from ..errors import UserError
from ..lora.delta import TUCKER
from ..lora.factors import sum_of
from ..lora.layouts import LoRAFile, arranged
from ..lora.metadata import metadata_for
from ..lora.parts import LoRAWeights
from ..lora.result import Losses, save_lora, watched
from ..lora.shapes import BIAS, DORA, changes_weight
from ..weights.arrays import of_bytes
from ..weights.dtypes import dtype_named
from ..weights.streamed_file import refuse_inputs
from .settings import CombineSettings

logger = logging.getLogger(__name__)

_SHOWN = 12
_ALONE = {DORA: "DoRA", "set_weight": "a whole new weight", BIAS: "a second bias", **dict.fromkeys(TUCKER, "a Tucker decomposition")}

Layers: TypeAlias = "dict[str, list[tuple[str, LoRAWeights, float]]]"
"""Dotted path -> (file, LoRA weights, strength) of each file that changes the layer."""


def run(args: Namespace) -> None:
    """Combine `--lora_weight` into `--output`. UserError for LoRAs of different models or sizes."""
    settings = CombineSettings.read(args)
    files = list(settings.lora_weight)
    refuse_inputs([settings.output], files, "--output")
    given = settings.lora_multiplier or ()
    strengths = [*given, *[1.0] * (len(files) - len(given))]
    loras = [LoRAFile.open(path) for path in files]
    naming = _naming(loras, settings.architecture)
    layers = _layers(loras, strengths, naming)
    left = [f"{key} of {lora.file.path}" for lora in loras for key in lora.left]
    combined: dict[str, dict[str, Tensor]] = {}
    losses = Losses()
    for path, several in watched(layers, "combining"):
        combined[path] = _layer(path, several, settings.rank, losses)
    metadata = metadata_for(_metadata(loras, files, strengths), settings.architecture)
    dtype = dtype_named(settings.save_precision, "--save_precision") if settings.save_precision else None
    save_lora(Path(settings.output), combined, metadata, dtype or _widest(layers))
    for lora in loras:
        lora.close()
    print(f"combined {counted(len(files), 'file')}: {counted(len(combined), 'layer')}", flush=True)
    if left:
        shown = ", ".join(left[:_SHOWN]) + (", ..." if len(left) > _SHOWN else "")
        logger.warning("left out, as no layer of the transformer has them: %s: %s", counted(len(left), "tensor"), shown)
    losses.report(settings.rank, len(left))


def _naming(loras: list[LoRAFile], architecture: str | None) -> str:
    natives = {lora.native for lora in loras}
    if architecture is not None:
        return architecture
    if len(natives) > 1:
        named = "; ".join(f"{lora.file.path} ({lora.title})" for lora in loras)
        shared = (" and ".join(f"{card.title}'s" for card in group) for group in same_layers())
        advice = "".join(f". {models} go together with --architecture" for models in shared)
        raise UserError(f"these LoRAs are for different models: {named}{advice}")
    return natives.pop()


def _layers(loras: list[LoRAFile], strengths: list[float], naming: str) -> Layers:
    layers: Layers = {}
    for lora, strength in zip(loras, strengths, strict=True):
        for path, weights in arranged(lora, naming):
            others = layers.setdefault(path, [])
            others.append((str(lora.file.path), weights, strength))
            _same_size(path, others)
    return layers


def _same_size(path: str, several: list[tuple[str, LoRAWeights, float]]) -> None:
    first_file, first, _ = several[0]
    file, weights, _ = several[-1]
    one, other = first.size(), weights.size()
    if one is not None and other is not None and one != other:
        raise UserError(f"{path} is {one[0]}x{one[1]} in {first_file} and {other[0]}x{other[1]} in {file}: they are for different models")


def _layer(path: str, several: list[tuple[str, LoRAWeights, float]], rank: int | None, losses: Losses) -> dict[str, Tensor]:
    loaded = [({name: of_bytes(p.make(), p.dtype) for name, p in weights.parts.items()}, strength) for _, weights, strength in several]
    for (file, _, _), (parts, _) in zip(several, loaded, strict=True):
        for name, what in _ALONE.items():
            if name in parts:
                raise UserError(f"{path} of {file} has {name}: {what} cannot be combined; merge_lora can merge DoRA and whole weights")
    result: dict[str, Tensor] = {}
    biases = [strength * parts["diff_b"].float() for parts, strength in loaded if "diff_b" in parts]
    if biases:
        result["diff_b"] = sum(biases[1:], biases[0])
    matrices = [(parts, strength) for parts, strength in loaded if changes_weight(parts)]
    if not matrices:
        return result
    if all("diff" in parts for parts, _ in matrices) and (rank is None or matrices[0][0]["diff"].ndim < 2):
        differences = [strength * parts["diff"].float() for parts, strength in matrices]
        return {**result, "diff": sum(differences[1:], differences[0])}
    factors = sum_of(matrices, rank)
    if factors is None:
        kinds = ", ".join(sorted({weights.kind for _, weights, _ in several}))
        raise UserError(f"{path} ({kinds}) cannot be combined exactly: choose a rank with --rank, such as 32")
    losses.add(path, factors)
    shaped = (parts[name] for parts, _ in matrices for name in ("lora_down.weight", "diff") if name in parts)
    return {**result, **factors.parts(next((part.shape[1:] for part in shaped), factors.down.shape[1:]))}


def _widest(layers: Layers) -> torch.dtype:
    """float32 unless all inputs are of one 16-bit dtype."""
    dtypes = {part.dtype for several in layers.values() for _, a, _ in several for name, part in a.parts.items() if name != "alpha"}
    narrow = {"BF16": torch.bfloat16, "F16": torch.float16}
    return narrow.get(dtypes.pop(), torch.float32) if len(dtypes) == 1 else torch.float32


def _metadata(loras: list[LoRAFile], files: list[str], strengths: list[float]) -> dict[str, str]:
    kept = (
        "ss_base_model_version",
        "modelspec.architecture",
        "modelspec.implementation",
        "modelspec.sai_model_spec",
        "modelspec.resolution",
    )
    known = {key: value for lora in reversed(loras) for key, value in lora.metadata.items() if key in kept}
    recipe = [{"file": Path(file).name, "strength": strength} for file, strength in zip(files, strengths, strict=True)]
    return {**known, "combined_from": json.dumps(recipe, ensure_ascii=False)}
