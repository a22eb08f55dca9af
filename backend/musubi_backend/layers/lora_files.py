"""LoRA files for the models: read in any layout, merged into weights as they are loaded."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from ..errors import UserError
from ..weights.arrays import of_bytes
from ..weights.lora_layouts import LoRAFile, arranged, musubi_tensors
from ..weights.recognise import recognise
from .lora import adapter_name
from .lora_delta import changes_weight, check, merged, merged_bias, rows_of

logger = logging.getLogger(__name__)

_BLOCK = 1 << 20  # numbers merged at a time


def read_lora(path: str | Path, architecture: str | None = None) -> dict[str, Tensor]:
    """The tensors of a LoRA file of any layout, with musubi-tuner's names.

    architecture: id of the model's card; layers are named, split and fused as that model has them. None: as the file's own model.
    Tensors of unknown meaning keep their names. UserError when the file is no LoRA.
    """
    kind = recognise(path)
    if kind is not None and kind.id != "lora":
        raise UserError(f"{path} is a {kind}; a LoRA file is expected")
    lora = LoRAFile.open(path)
    try:
        state = {name: of_bytes(lora.file.array(name), lora.file.tensors[name].dtype) for name in lora.left}
        for layer, adapter in arranged(lora, architecture or lora.native):
            for name, part in musubi_tensors(layer, adapter):
                state[name] = of_bytes(part.make(), part.dtype)
    finally:
        lora.close()
    return state


@dataclass
class LoRAMerge:
    """Adds LoRA files of any kind and layout to weights while they are loaded (`weights.loader.load_into(transform=...)`).

    The arithmetic is musubi-tuner's: W + multiplier * delta, in the wider of the two dtypes; the loader then casts to the model's
    dtype. architecture: as in `read_lora`.
    """

    files: Sequence[str | Path]
    multipliers: Sequence[float] = ()
    include_patterns: Sequence[str | None] = ()
    exclude_patterns: Sequence[str | None] = ()
    architecture: str | None = None
    _states: list[dict[str, dict[str, Tensor]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        for index, path in enumerate(self.files):
            try:
                kept = _filtered(read_lora(path, self.architecture), _at(self.include_patterns, index), _at(self.exclude_patterns, index))
            except re.error as error:
                raise UserError(f"--include_patterns or --exclude_patterns {index + 1} is no regular expression: {error}") from error
            if not kept:
                raise UserError(f"{path}: the include and exclude patterns leave nothing of this LoRA")
            self._states.append(_by_adapter(kept))

    def check(self, tensors: Mapping[str, Sequence[int]]) -> None:
        """Compare with the model's tensors (name -> shape) before anything is loaded. UserError when a file fits nothing or is for
        other sizes; what is left over in a fitting file is a warning."""
        usable = {adapter_name(name.rpartition(".")[0]) for name in tensors}
        for path, state in zip(self.files, self._states, strict=True):
            unused = [adapter for adapter in state if adapter not in usable]
            if len(unused) == len(state):
                raise UserError(f"{path} is a {recognise(path)} and fits no layer of this model; its keys are like {_first_key(state)}")
            if unused:
                keys = ", ".join(_key(adapter, part) for adapter in unused for part in state[adapter])
                logger.warning("Warning: not all LoRA keys are used: %s: %s", path, keys)
            for name, shape in tensors.items():
                adapter, _, leaf = _adapter_and_leaf(name)
                if leaf == "weight" and adapter in state and changes_weight(state[adapter]):
                    check(shape, state[adapter], f"{adapter} of {path}")

    def touches(self, name: str) -> bool:
        """Whether any of the LoRAs changes the tensor called `name` in the model."""
        adapter, _, leaf = _adapter_and_leaf(name)
        parts = [state[adapter] for state in self._states if adapter in state]
        return any(changes_weight(part) if leaf == "weight" else leaf == "bias" and "diff_b" in part for part in parts)

    def __call__(self, name: str, weight: Tensor) -> Tensor:
        """`name` is the tensor's name in the model."""
        for index in range(len(self._states)):
            weight = self._with(index, name, weight)
        return weight

    def rounded(self, name: str, weight: Tensor) -> Tensor:
        """As calling it, in float32 but rounded to the weight's dtype after each LoRA, as musubi-tuner's `merge_lora` does it.

        `weight` is overwritten, some rows at a time, so that nothing of its size is needed beside it.
        """
        adapter, _, leaf = _adapter_and_leaf(name)
        for index, state in enumerate(self._states):
            if adapter not in state:
                continue
            parts = {part: tensor.to(weight.device, torch.float32) for part, tensor in state[adapter].items()}
            blocks: list[tuple[Tensor, Mapping[str, Tensor]]] = [(weight, parts)]
            if leaf == "weight" and changes_weight(parts):
                check(weight.shape, parts, f"{adapter} of {self.files[index]}")
                blocks = self._blocks(weight, parts)
            for rows, part in blocks:
                rows.copy_(self._with(index, name, rows.float(), part))
        return weight

    def _blocks(self, weight: Tensor, parts: Mapping[str, Tensor]) -> list[tuple[Tensor, Mapping[str, Tensor]]]:
        """Rows of a weight with the adapter of those rows; all of them where they cannot be told apart."""
        step = max(1, _BLOCK * len(weight) // max(1, weight.numel()))
        pairs = [(weight[start : start + step], rows_of(parts, start, start + step)) for start in range(0, len(weight), step)]
        return [(rows, part) for rows, part in pairs if part is not None] or [(weight, parts)]

    def _with(self, index: int, name: str, weight: Tensor, parts: Mapping[str, Tensor] | None = None) -> Tensor:
        """With one of the LoRAs, or `parts` of it."""
        adapter, _, leaf = _adapter_and_leaf(name)
        parts = self._states[index].get(adapter) if parts is None else parts
        if parts is None:
            return weight
        multiplier = self.multipliers[index] if index < len(self.multipliers) else 1.0
        if leaf == "weight" and changes_weight(parts):
            return merged(weight, parts, multiplier, f"{adapter} of {self.files[index]}")
        return merged_bias(weight, parts, multiplier) if leaf == "bias" else weight


def _adapter_and_leaf(name: str) -> tuple[str, str, str]:
    path, dot, leaf = name.rpartition(".")
    return adapter_name(path), dot, leaf


def _by_adapter(state: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    adapters: dict[str, dict[str, Tensor]] = {}
    for key, tensor in state.items():
        adapter, _, part = key.partition(".")
        adapters.setdefault(adapter, {})[part] = tensor
    return adapters


def _first_key(state: Mapping[str, Mapping[str, Tensor]]) -> str:
    adapter, parts = next(iter(state.items()))
    return _key(adapter, next(iter(parts)))


def _key(adapter: str, part: str) -> str:
    return f"{adapter}.{part}" if part else adapter


def _filtered(state: dict[str, Tensor], include: str | None, exclude: str | None) -> dict[str, Tensor]:
    kept = state
    if include:
        kept = {key: tensor for key, tensor in kept.items() if re.search(include, key)}
    if exclude:
        kept = {key: tensor for key, tensor in kept.items() if not re.search(exclude, key)}
    return kept


def _at(patterns: Sequence[str | None], index: int) -> str | None:
    return patterns[index] if index < len(patterns) else None
