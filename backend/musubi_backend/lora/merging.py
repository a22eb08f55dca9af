"""LoRA files for the models: read in any layout, merged into weights as they are loaded."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from ..errors import UserError
from ..weights.arrays import of_bytes
from ..weights.recognise import recognise
from .delta import check, merged, merged_bias, rows_of
from .layouts import LoRAFile, arranged, musubi_tensors
from .network import module_name
from .shapes import BIAS, changes_weight

logger = logging.getLogger(__name__)

_BLOCK = 1 << 20  # numbers merged at a time
_SHOWN = 12


def read_lora(path: str | Path, architecture: str | None = None, expert: str = "") -> dict[str, Tensor]:
    """The tensors of a LoRA file of any layout, with musubi-tuner's names.

    architecture: id of the model's card; layers are named, split and fused as that model has them. None: as the file's own model. expert:
    as in `LoRAMerge`. Tensors of unknown meaning keep their names. UserError when the file is no LoRA.
    """
    lora = open_lora(path, expert)
    try:
        state = {name: of_bytes(lora.file.array(name), lora.file.tensors[name].dtype) for name in lora.left}
        for layer, weights in arranged(lora, architecture or lora.native):
            for name, part in musubi_tensors(layer, weights):
                state[name] = of_bytes(part.make(), part.dtype)
    finally:
        lora.close()
    return state


def open_lora(path: str | Path, expert: str = "") -> LoRAFile:
    """As `LoRAFile.open`; UserError that says what the file is where it is a known kind of another file."""
    kind = recognise(path)
    if kind is not None and kind.id != "lora":
        raise UserError(f"{path} is a {kind}; a LoRA file is expected")
    return LoRAFile.open(path, expert)


@dataclass
class LoRAMerge:
    """Adds LoRA files of any kind and layout to weights while they are loaded (`weights.loader.load_into(transform=...)`).

    The arithmetic is musubi-tuner's: W + multiplier * delta, in the wider of the two dtypes; the loader then casts to the model's
    dtype. architecture: as in `read_lora`. expert: whose layers are wanted of a file for two experts (`lora.tensor_names`).
    skip_mismatched: layers of another size than the model's are left out with a warning.
    """

    files: Sequence[str | Path]
    multipliers: Sequence[float] = ()
    include_patterns: Sequence[str | None] = ()
    exclude_patterns: Sequence[str | None] = ()
    architecture: str | None = None
    expert: str = ""
    skip_mismatched: bool = False
    _states: list[dict[str, list[_Piece]]] = field(default_factory=list)
    _left: list[list[str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        for index, path in enumerate(self.files):
            lora = open_lora(path, self.expert)
            try:
                state = _pieces(lora, self.architecture or lora.native, _chosen(self.include_patterns, self.exclude_patterns, index))
            except re.error as error:
                raise UserError(f"--include_patterns or --exclude_patterns {index + 1} is no regular expression: {error}") from error
            finally:
                lora.close()
            if not state:
                raise UserError(f"{path}: the include and exclude patterns leave nothing of this LoRA")
            self._states.append(state)
            self._left.append(lora.left)

    def check(self, tensors: Mapping[str, Sequence[int]]) -> None:
        """Compare with the model's tensors (name -> shape) before anything is loaded. UserError when a file fits nothing or is for
        other sizes; what is left over in a fitting file is a warning."""
        leaves = {_module_and_leaf(name): tuple(shape) for name, shape in tensors.items()}
        for path, state, left in zip(self.files, self._states, self._left, strict=True):
            unused = [
                f"{module}.{part}"
                for module, pieces in state.items()
                for piece in pieces
                for part in piece.parts
                if (module, "bias" if part == "diff_b" else "weight") not in leaves or part == BIAS
            ]
            if len(unused) == sum(len(piece.parts) for pieces in state.values() for piece in pieces):
                raise UserError(f"{path} is a {recognise(path)} and fits no layer of this model; its keys are like {unused[0]}")
            if unused or left:
                keys = [*unused, *left]
                logger.warning(
                    "Warning: not all LoRA keys are used: %s: %d, %s%s",
                    path,
                    len(keys),
                    ", ".join(keys[:_SHOWN]),
                    ", ..." * (len(keys) > _SHOWN),
                )
            for (module, leaf), shape in leaves.items():
                for piece in list(state.get(module, ())):
                    self._check_or_skip(state, module, piece, leaf, shape, f"{module} of {path}")
            if not any(state.values()):
                raise UserError(f"{path}: every layer has another size than the model's; it was trained on another model")

    def _check_or_skip(
        self, state: dict[str, list[_Piece]], module: str, piece: _Piece, leaf: str, shape: Sequence[int], name: str
    ) -> None:
        try:
            _check_piece(piece, leaf, shape, name)
        except UserError as error:
            if not self.skip_mismatched:
                raise
            logger.warning("left out: %s", error)
            state[module] = [other for other in state[module] if other is not piece]

    def touches(self, name: str) -> bool:
        """Whether any of the LoRAs changes the tensor called `name` in the model."""
        module, leaf = _module_and_leaf(name)
        return any(piece.changes(leaf) for state in self._states for piece in state.get(module, ()))

    def __call__(self, name: str, weight: Tensor) -> Tensor:
        """`name` is the tensor's name in the model."""
        for index in range(len(self._states)):
            weight = self._with(index, name, weight)
        return weight

    def rounded(self, name: str, weight: Tensor) -> Tensor:
        """As calling it, in float32 but rounded to the weight's dtype after each LoRA, as musubi-tuner's `merge_lora` does it.

        `weight` is overwritten, some rows at a time, so that nothing of its size is needed next to it.
        """
        module, leaf = _module_and_leaf(name)
        for index, state in enumerate(self._states):
            for piece in state.get(module, ()):
                piece = piece.to(weight.device, torch.float32)
                rows = piece.of(weight)
                blocks: list[tuple[Tensor, Mapping[str, Tensor]]] = [(rows, piece.parts)]
                if leaf == "weight" and changes_weight(piece.parts):
                    check(rows.shape, piece.parts, f"{module} of {self.files[index]}")
                    blocks = self._blocks(rows, piece.parts)
                for some, parts in blocks:
                    some.copy_(self._changed(index, name, some.float(), parts))
        return weight

    def _blocks(self, weight: Tensor, parts: Mapping[str, Tensor]) -> list[tuple[Tensor, Mapping[str, Tensor]]]:
        """Rows of a weight with the LoRA weights of those rows; all of them where they cannot be kept apart."""
        step = max(1, _BLOCK * len(weight) // max(1, weight.numel()))
        pairs = [(weight[start : start + step], rows_of(parts, start, start + step)) for start in range(0, len(weight), step)]
        return [(rows, part) for rows, part in pairs if part is not None] or [(weight, parts)]

    def _with(self, index: int, name: str, weight: Tensor) -> Tensor:
        """With one of the LoRAs. The weight stays as it is; the same object where nothing changes."""
        module, leaf = _module_and_leaf(name)
        for piece in self._states[index].get(module, ()):
            if piece.rows is None:
                weight = self._changed(index, name, weight, piece.parts)
            elif piece.changes(leaf):
                changed = self._changed(index, name, piece.of(weight), piece.parts)
                weight = weight.to(changed.dtype, copy=True)
                piece.of(weight).copy_(changed)
        return weight

    def _changed(self, index: int, name: str, weight: Tensor, parts: Mapping[str, Tensor]) -> Tensor:
        """A weight or bias, or rows of it, with the weights that one of the LoRAs has for it."""
        module, leaf = _module_and_leaf(name)
        multiplier = self.multipliers[index] if index < len(self.multipliers) else 1.0
        if leaf == "weight" and changes_weight(parts):
            return merged(weight, parts, multiplier, f"{module} of {self.files[index]}")
        return merged_bias(weight, parts, multiplier) if leaf == "bias" else weight


@dataclass(frozen=True)
class _Piece:
    """One LoRA weights. rows: which of the weight's rows it changes; None for all."""

    parts: Mapping[str, Tensor]
    rows: tuple[int, int] | None = None

    def changes(self, leaf: str) -> bool:
        return changes_weight(self.parts) if leaf == "weight" else leaf == "bias" and "diff_b" in self.parts

    def of(self, weight: Tensor) -> Tensor:
        """Those rows of a weight, in its memory."""
        return weight if self.rows is None else weight[self.rows[0] : self.rows[1]]

    def to(self, device: torch.device, dtype: torch.dtype) -> _Piece:
        return _Piece({name: part.to(device, dtype) for name, part in self.parts.items()}, self.rows)


def _pieces(lora: LoRAFile, naming: str, chosen: Callable[[str], bool]) -> dict[str, list[_Piece]]:
    """LoRA weights -> what the file has for its layer."""
    state: dict[str, list[_Piece]] = {}
    for layer, weights in arranged(lora, naming, apart=True):
        parts = {name: part for name, part in musubi_tensors(layer, weights) if chosen(name)}
        if parts:
            piece = {name.partition(".")[2]: _computable(of_bytes(part.make(), part.dtype)) for name, part in parts.items()}
            if not all(torch.isfinite(part).all() for part in piece.values()):
                raise UserError(
                    f"{weights.source} holds numbers that are not finite, and would make nothing but those of the model: its training went "
                    "wrong. Use an earlier checkpoint"
                )
            state.setdefault(module_name(layer), []).append(_Piece(piece, weights.rows))
    return state


def _computable(tensor: Tensor) -> Tensor:
    """fp8 in float32, as nothing is computed with them."""
    return tensor.float() if tensor.is_floating_point() and tensor.element_size() == 1 else tensor


def _check_piece(piece: _Piece, leaf: str, shape: Sequence[int], name: str) -> None:
    """UserError where it does not fit a tensor of the model."""
    if not piece.changes(leaf):
        return
    if piece.rows is not None:
        if piece.rows[1] > shape[0]:
            raise UserError(f"{name} changes rows up to {piece.rows[1]}, and the model's has {shape[0]}: it was trained on another model")
        shape = (piece.rows[1] - piece.rows[0], *shape[1:])
    if leaf == "weight":
        check(shape, piece.parts, name)
    elif piece.parts["diff_b"].numel() != prod(shape):
        raise UserError(f"{name} changes a bias of {piece.parts['diff_b'].numel()}, and the model's is {list(shape)}")


def _module_and_leaf(name: str) -> tuple[str, str]:
    """Of a tensor of the model. A table, such as `blocks.0.modulation`, is a layer of its own with nothing but a weight."""
    path, _, leaf = name.rpartition(".")
    return (module_name(path), leaf) if leaf in ("weight", "bias") else (module_name(name), "weight")


def _chosen(include: Sequence[str | None], exclude: Sequence[str | None], index: int) -> Callable[[str], bool]:
    """Whether a tensor's name passes the patterns of one file."""
    wanted, unwanted = (re.compile(pattern) if pattern else None for pattern in (_at(include, index), _at(exclude, index)))
    return lambda name: (wanted is None or bool(wanted.search(name))) and not (unwanted is not None and unwanted.search(name))


def _at(patterns: Sequence[str | None], index: int) -> str | None:
    return patterns[index] if index < len(patterns) else None
