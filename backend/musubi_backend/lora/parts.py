"""One layer's part of a LoRA file, not yet read: factors, alpha and what can be done with them without changing the delta.

The arithmetic is exact where it only moves rows (splitting and fusing layers); factors are rounded to the file's dtype where a
scale goes into them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod

import numpy as np

from ..errors import UserError
from ..weights.arrays import Array, TensorFile, from_float32, is_float, rounded, to_float32
from .shapes import ALPHA, BIAS, DORA, DOWN, FULL, LOHA, LOKR, LORA, UP, WHOLE, kind_of, kron_size, size_of

_ROWS = {LORA: (UP,), LOHA: ("hada_w1_a", "hada_w2_a"), LOKR: ("lokr_w1", "lokr_w1_a"), FULL: WHOLE}
_EXTRA_ROWS = ("diff_b", DORA)
_FULL = ("diff", "diff_b", "set_weight")
_BLOCK = 1 << 16


@dataclass(frozen=True)
class Part:
    """One tensor to be: safetensors' dtype name, shape, and how to get it (as `arrays` holds it)."""

    dtype: str
    shape: tuple[int, ...]
    make: Callable[[], Array]


@dataclass(frozen=True)
class LoRAWeights:
    """What a LoRA file has for one layer. Names of parts are musubi-tuner's: `lora_down.weight`, `alpha`, `hada_w1_a`, `lokr_w1`, ...

    source: file and name there, for messages. alpha: its value; None where the file has none, which means the rank.
    rows: which of the layer's rows it changes; None for all.
    """

    parts: Mapping[str, Part]
    source: str
    alpha: float | None = None
    rows: tuple[int, int] | None = None

    @property
    def kind(self) -> str:
        """LORA, LOHA, LOKR or FULL; "" when no factors are there."""
        return kind_of(self.parts)

    @property
    def rank(self) -> int:
        """Rank of the factors; 0 where there are none (full differences, LoKr of two whole matrices)."""
        for name, axis in ((DOWN, 0), ("hada_w1_b", 0), ("lokr_w2_b", 0), ("lokr_w1_b", 0)):
            if name in self.parts:
                return self.parts[name].shape[axis]
        return 0

    @property
    def scale(self) -> float:
        """alpha / rank: what the product of the factors is multiplied by."""
        return self.alpha / self.rank if self.alpha is not None and self.rank else 1.0

    def size(self) -> tuple[int, int] | None:
        """(rows, columns) of the matrix it changes; None where only a bias is changed."""
        return size_of({name: part.shape for name, part in self.parts.items()})

    def check(self) -> None:
        """UserError when the factors are empty or do not fit each other, or the alpha is no number."""
        empty = next((name for name, part in self.parts.items() if 0 in part.shape), None)
        if empty is not None:
            raise UserError(f"{self.source}: {empty} {list(self.parts[empty].shape)} is empty; use another file of this LoRA")
        whole = next((name for name, part in self.parts.items() if name != ALPHA and not is_float(part.dtype)), None)
        if whole is not None:
            raise UserError(
                f"{self.source}: {whole} is in {self.parts[whole].dtype}, which no factors are in; use another file of this LoRA"
            )
        if self.alpha is not None and not math.isfinite(self.alpha):
            raise UserError(f"{self.source}: its alpha is {self.alpha}; use another file of this LoRA")
        pairs = [(DOWN, 0, UP, 1), ("hada_w1_b", 0, "hada_w1_a", 1), ("hada_w2_b", 0, "hada_w2_a", 1), ("hada_w1_a", 0, "hada_w2_a", 0),
                 ("hada_w1_b", 1, "hada_w2_b", 1), ("lokr_w1_a", 1, "lokr_w1_b", 0), ("lokr_w2_a", 1, "lokr_w2_b", 0)]  # fmt: skip
        for one, axis, other, other_axis in pairs:
            if one in self.parts and other in self.parts:
                first, second = self.parts[one].shape, self.parts[other].shape
                if min(len(first), len(second)) < 2 or first[axis] != second[other_axis]:
                    raise UserError(f"{self.source}: {one} {list(first)} and {other} {list(second)} do not fit each other")
        wholes = [name for name in WHOLE if name in self.parts]
        if wholes and (self.kind != FULL or len(wholes) > 1):
            raise UserError(f"{self.source} is a {self.kind} and has {' and '.join(wholes)} too; use another file of this LoRA")
        size = self.size()
        if DORA in self.parts:
            rows, columns = self.parts[DORA].shape
            if size is None or (rows != size[0] if columns == 1 else size[1] % columns):
                raise UserError(f"{self.source}: DoRA's magnitudes {[rows, columns]} do not fit its matrix {list(size or ())}")


def read(file: TensorFile, name: str) -> Part:
    """A tensor as it lies in a file."""
    info = file.tensors[name]
    return Part(info.dtype, info.shape, lambda: file.array(name))


def number(value: float, dtype: str) -> Part:
    """A tensor of one number, such as an alpha."""
    if dtype == "I64":
        return Part(dtype, (), lambda: np.array(int(value), np.int64))
    return Part(dtype, (), lambda: from_float32(np.array(value, np.float32), dtype))


def scaled(part: Part, factor: float) -> Part:
    """`part` times a number, rounded to its dtype as torch rounds."""

    def make() -> Array:
        values = part.make()
        result = np.empty_like(values)
        flat, target = values.reshape(-1), result.reshape(-1)
        for start in range(0, flat.size, _BLOCK):  # small enough for the processor's cache
            block = slice(start, start + _BLOCK)
            target[block] = from_float32(to_float32(flat[block], part.dtype) * np.float32(factor), part.dtype)
        return result

    return part if factor == 1.0 else Part(part.dtype, part.shape, make)


def usual(weights: LoRAWeights) -> LoRAWeights:
    """The LoRA weights with what programs write differently in one form: DoRA's magnitudes as [out, 1] or [1, in], and the bias of PEFT's
    `lora_B` as `diff_b`, times the scale that PEFT gives it.

    Magnitudes [out] are PEFT's (`lora_magnitude_vector`) and ai-toolkit's (`magnitude`); LyCORIS, kohya and OneTrainer have
    `dora_scale` with as many dimensions as the weight (github.com/huggingface/peft, `tuners/lora/dora.py`; ostris/ai-toolkit,
    `toolkit/models/DoRA.py`; KohakuBlueleaf/LyCORIS, `modules/locon.py`; Nerogar/OneTrainer, `modules/module/LoRAModule.py`).
    """
    parts = dict(weights.parts)
    if DORA in parts:
        shape = parts[DORA].shape
        inputs = len(shape) > 1 and shape[0] == 1 and not _of_convolution(weights)
        parts[DORA] = _reshaped(parts[DORA], (1, prod(shape)) if inputs else (prod(shape), 1))
    if BIAS in parts and "diff_b" not in parts:
        parts["diff_b"] = scaled(parts.pop(BIAS), weights.scale)
    return LoRAWeights(parts, weights.source, weights.alpha)


def with_dimensions(weights: LoRAWeights) -> LoRAWeights:
    """A DoRA whose magnitudes of inputs [1, in] have as many dimensions as its weight, as LyCORIS and ComfyUI have them."""
    dimensions = len(weights.parts[DOWN].shape) if DOWN in weights.parts else 2
    shape = weights.parts[DORA].shape
    return replace(weights, parts={**weights.parts, DORA: _reshaped(weights.parts[DORA], (*shape, *[1] * (dimensions - 2)))})


def _of_convolution(weights: LoRAWeights) -> bool:
    """PEFT writes the magnitudes of a convolution's outputs as [1, out, 1, 1]; others those of its inputs as [1, in, 1, 1]."""
    shape, size = weights.parts[DORA].shape, weights.size()
    return len(shape) > 2 and size is not None and shape[1] == size[0] != size[1]


def _reshaped(part: Part, shape: tuple[int, ...]) -> Part:
    return Part(part.dtype, shape, lambda: part.make().reshape(shape))


def split_scale(alpha: Part, rank: int) -> tuple[float, float]:
    """(√|alpha / rank|, sign of alpha), each step rounded to alpha's dtype as musubi-tuner's converter does it; whole numbers count as
    float32."""
    dtype = alpha.dtype if is_float(alpha.dtype) else "F32"
    raw = alpha.make()
    value = float((to_float32(raw, alpha.dtype) if is_float(alpha.dtype) else raw).reshape(()))
    ratio = rounded(abs(value) / rank, dtype)
    return rounded(float(np.sqrt(np.float32(ratio))), dtype), -1.0 if value < 0 else 1.0


def split(weights: LoRAWeights, parts: int) -> list[LoRAWeights]:
    """LoRA weights of a fused layer as `parts` LoRA weights of its rows. UserError where a LoKr's blocks lie across the border."""
    if set(weights.parts) == {ALPHA}:
        return [weights] * parts
    if DORA in weights.parts and weights.parts[DORA].shape[0] == 1:
        raise UserError(f"{weights.source} is a DoRA with a magnitude for each input of a fused layer; it cannot be split into its parts")
    stops = [int(stop) for stop in np.cumsum(_row_counts(weights, parts))]
    return [_rows(weights, start, stop) for start, stop in zip([0, *stops[:-1]], stops, strict=True)]


def fusible(several: Sequence[LoRAWeights | None]) -> bool:
    """Whether one LoRA can have the deltas of these parts of a fused layer. A LoKr has no such form, full differences, biases and
    DoRA of some parts only have none, and DoRA's norms over outputs reach across all rows."""
    present = [weights for weights in several if weights is not None]
    if len({weights.kind for weights in present}) != 1 or present[0].kind in (LOKR, ""):
        return False
    if any(DORA in weights.parts and weights.parts[DORA].shape[0] == 1 for weights in present):
        return False
    extras = [{name for name in (*_EXTRA_ROWS, *_FULL) if name in weights.parts} for weights in present]
    whole = len(present) == len(several) and all(names == extras[0] for names in extras)
    return whole or not any(extras)


def placed(several: Sequence[LoRAWeights | None]) -> list[LoRAWeights]:
    """The parts of a fused layer, each with its rows of it."""
    stops = [int(stop) for stop in np.cumsum(_fused_row_counts(several))]
    starts = [0, *stops[:-1]]
    return [
        replace(weights, rows=(start, stop)) for weights, start, stop in zip(several, starts, stops, strict=True) if weights is not None
    ]


def fuse(several: Sequence[LoRAWeights | None], source: str) -> LoRAWeights:
    """The LoRA weights of the parts of a fused layer as one that has exactly their deltas; None where a part has none.

    LoRA and LoHa ranks add up; parts that share their down factor (as `split` leaves them) keep it. UserError for LoKr, which has no
    such form.
    """
    present = [weights for weights in several if weights is not None]
    kinds = {weights.kind for weights in present}
    if not fusible(several):
        dora = " with DoRA" if any(DORA in weights.parts for weights in present) else ""
        raise UserError(f"{source}: its parts ({', '.join(sorted(kinds))}{dora}) cannot be fused into one layer; merge_lora can merge them")
    rows = _fused_row_counts(several)
    kind = kinds.pop()
    if kind == FULL:
        fused = {name: _stacked([a.parts[name] for a in present]) for name in _FULL if all(name in a.parts for a in present)}
        return LoRAWeights(fused, source)
    if kind == LORA and len(present) == len(several) and _share(present, DOWN):
        fused = {DOWN: present[0].parts[DOWN], UP: _stacked([weights.parts[UP] for weights in present])}
        return _with_extras(fused, present, source, present[0].alpha)
    scale = present[0].scale
    same = all(weights.scale == scale for weights in present)
    rank = sum(weights.rank for weights in present)
    fused = {}
    for up, down in ((UP, DOWN),) if kind == LORA else (("hada_w1_a", "hada_w1_b"), ("hada_w2_a", "hada_w2_b")):
        carries = not same and up != "hada_w2_a"
        ups = [scaled(a.parts[up], a.scale if carries else 1.0) if a is not None else None for a in several]
        fused[up] = _block_diagonal(ups, rows)
        fused[down] = _stacked([weights.parts[down] for weights in present])
    return _with_extras(fused, present, source, scale * rank if same else float(rank))


def _with_extras(fused: dict[str, Part], present: Sequence[LoRAWeights], source: str, alpha: float | None) -> LoRAWeights:
    for name in _EXTRA_ROWS:
        if any(name in weights.parts for weights in present):
            fused[name] = _stacked([weights.parts[name] for weights in present])
    if alpha is not None:
        alphas = [weights.parts[ALPHA] for weights in present if ALPHA in weights.parts]
        dtype = alphas[0].dtype if alphas else "F32"
        fused[ALPHA] = number(alpha, dtype if is_float(dtype) or float(alpha).is_integer() else "F32")
    return LoRAWeights(fused, source, alpha)


def _share(several: Sequence[LoRAWeights], name: str) -> bool:
    first = several[0]
    alike = (a.parts[name].shape == first.parts[name].shape and a.alpha == first.alpha for a in several)
    if not all(alike) or len({weights.parts[name].dtype for weights in several}) != 1:
        return False
    content = first.parts[name].make()
    return all(np.array_equal(content, weights.parts[name].make()) for weights in several[1:])


def _row_counts(weights: LoRAWeights, parts: int) -> list[int]:
    """Rows of each part of a fused layer: equal thirds, or three as high as the layer is wide and the rest (linear1 of MMDiT blocks)."""
    size = weights.size()
    rows = size[0] if size else weights.parts["diff_b"].shape[0]
    if parts == 3:
        return [rows // 3] * 3
    width = size[1] if size else rows // 7
    if rows <= 3 * width:
        raise UserError(f"{weights.source}: {rows} rows are too few for three of {width} and a rest; it belongs to another model")
    return [width, width, width, rows - 3 * width]


def _fused_row_counts(several: Sequence[LoRAWeights | None]) -> list[int]:
    """Rows of each part; where a part is missing, as in the model family: q, k, v as wide as the input, the rest four times that."""
    sizes = [weights.size() if weights else None for weights in several]
    width = next((size[1] for size in sizes if size), 0)
    usual = [width, width, width, 4 * width]
    return [size[0] if size else usual[index] for index, size in enumerate(sizes)]


def _rows(weights: LoRAWeights, start: int, stop: int) -> LoRAWeights:
    cut = dict(weights.parts)
    if "lokr_w1" in cut or "lokr_w1_a" in cut:
        height = kron_size({name: part.shape for name, part in cut.items()}, "lokr_w2")[0]
        if start % height or stop % height:
            raise UserError(f"{weights.source}: this LoKr has blocks of {height} rows and cannot be split at row {start or stop}")
        start, stop = start // height, stop // height
    for name in (*_ROWS[weights.kind], *_EXTRA_ROWS):
        if name in cut and (name != "dora_scale" or cut[name].shape[0] > 1):
            cut[name] = _slice(cut[name], start, stop)
    return LoRAWeights(cut, weights.source, weights.alpha)


def _slice(part: Part, start: int, stop: int) -> Part:
    return Part(part.dtype, (stop - start, *part.shape[1:]), lambda: part.make()[start:stop])


def _common(parts: Sequence[Part]) -> tuple[str, list[Callable[[], Array]]]:
    """A dtype that holds all parts, and how to get each in it."""
    dtypes = {part.dtype for part in parts}
    if len(dtypes) == 1:
        return parts[0].dtype, [part.make for part in parts]
    return "F32", [lambda part=part: to_float32(part.make(), part.dtype) for part in parts]  # type: ignore[misc]


def _stacked(parts: Sequence[Part]) -> Part:
    dtype, makers = _common(parts)
    if len({part.shape[1:] for part in parts}) != 1:
        raise UserError(f"parts of one layer differ in width: {', '.join(str(list(part.shape)) for part in parts)}")
    return Part(dtype, (sum(part.shape[0] for part in parts), *parts[0].shape[1:]), lambda: np.concatenate([make() for make in makers]))


def _block_diagonal(parts: Sequence[Part | None], rows: Sequence[int]) -> Part:
    """Blocks along the diagonal; a missing one leaves rows of zeros."""
    present = [part for part in parts if part is not None]
    dtype, makers = _common(present)
    waiting = dict(zip(map(id, present), makers, strict=True))
    shape = (sum(rows), sum(part.shape[1] for part in present))

    def make() -> Array:
        result: Array | None = None
        row = column = 0
        for part, height in zip(parts, rows, strict=True):
            if part is not None:
                block = waiting[id(part)]()
                if result is None:
                    result = np.zeros(shape, block.dtype)
                result[row : row + height, column : column + part.shape[1]] = block
                column += part.shape[1]
            row += height
        assert result is not None
        return result

    return Part(dtype, shape, make)
