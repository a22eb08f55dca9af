"""One layer's part of a LoRA file, not yet read: factors, alpha and what can be done with them without changing the delta.

The arithmetic is exact where it only moves rows (splitting and fusing layers); factors are rounded to the file's dtype where a
scale goes into them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np

from ..errors import UserError
from .arrays import Array, TensorFile, from_float32, is_float, rounded, to_float32

DOWN, UP, ALPHA = "lora_down.weight", "lora_up.weight", "alpha"
LORA, LOHA, LOKR, FULL = "LoRA", "LoHa", "LoKr", "full difference"
_LOHA = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
_ROWS = {LORA: (UP,), LOHA: ("hada_w1_a", "hada_w2_a"), LOKR: ("lokr_w1", "lokr_w1_a"), FULL: ("diff",)}
_EXTRA_ROWS = ("diff_b", "dora_scale")
_BLOCK = 1 << 16


@dataclass(frozen=True)
class Part:
    """One tensor to be: safetensors' dtype name, shape, and how to get it (as `arrays` holds it)."""

    dtype: str
    shape: tuple[int, ...]
    make: Callable[[], Array]


@dataclass(frozen=True)
class Adapter:
    """What a LoRA file has for one layer. Names of parts are musubi-tuner's: `lora_down.weight`, `alpha`, `hada_w1_a`, `lokr_w1`, ...

    source: file and name there, for messages. alpha: its value; None where the file has none, which means the rank.
    """

    parts: Mapping[str, Part]
    source: str
    alpha: float | None = None

    @property
    def kind(self) -> str:
        """LORA, LOHA, LOKR or FULL; "" when no factors are there."""
        if DOWN in self.parts and UP in self.parts:
            return LORA
        if all(name in self.parts for name in _LOHA):
            return LOHA
        if any(name in self.parts for name in ("lokr_w1", "lokr_w1_a")) and any(name in self.parts for name in ("lokr_w2", "lokr_w2_a")):
            return LOKR
        return FULL if "diff" in self.parts or "diff_b" in self.parts else ""

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
        shapes = {name: part.shape for name, part in self.parts.items()}
        if self.kind == LORA:
            return shapes[UP][0], prod(shapes[DOWN][1:])
        if self.kind == LOHA:
            return shapes["hada_w1_a"][0], shapes["hada_w1_b"][1]
        if self.kind == LOKR:
            first, second = _kron_size(shapes, "lokr_w1"), _kron_size(shapes, "lokr_w2")
            return first[0] * second[0], first[1] * second[1]
        if "diff" in shapes:
            return shapes["diff"][0], prod(shapes["diff"][1:])
        return None

    def check(self) -> None:
        """UserError when the factors do not fit each other."""
        pairs = [(DOWN, 0, UP, 1), ("hada_w1_b", 0, "hada_w1_a", 1), ("hada_w2_b", 0, "hada_w2_a", 1), ("hada_w1_a", 0, "hada_w2_a", 0),
                 ("hada_w1_b", 1, "hada_w2_b", 1), ("lokr_w1_a", 1, "lokr_w1_b", 0), ("lokr_w2_a", 1, "lokr_w2_b", 0)]  # fmt: skip
        for one, axis, other, other_axis in pairs:
            if one in self.parts and other in self.parts:
                first, second = self.parts[one].shape, self.parts[other].shape
                if min(len(first), len(second)) < 2 or first[axis] != second[other_axis]:
                    raise UserError(f"{self.source}: {one} {list(first)} and {other} {list(second)} do not fit each other")


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


def split_scale(alpha: Part, rank: int) -> float:
    """√(alpha / rank), each step rounded to alpha's dtype as musubi-tuner's converter does it; whole numbers count as float32."""
    dtype = alpha.dtype if is_float(alpha.dtype) else "F32"
    raw = alpha.make()
    value = float((to_float32(raw, alpha.dtype) if is_float(alpha.dtype) else raw).reshape(()))
    if value < 0:
        raise UserError(f"an alpha is {value:g}; it cannot be negative")
    ratio = rounded(value / rank, dtype)
    return rounded(float(np.sqrt(np.float32(ratio))), dtype)


def split(adapter: Adapter, parts: int) -> list[Adapter]:
    """An adapter of a fused layer as `parts` adapters of its rows. UserError where a LoKr's blocks lie across the border."""
    if set(adapter.parts) == {ALPHA}:
        return [adapter] * parts
    stops = [int(stop) for stop in np.cumsum(_row_counts(adapter, parts))]
    return [_rows(adapter, start, stop) for start, stop in zip([0, *stops[:-1]], stops, strict=True)]


def fuse(adapters: Sequence[Adapter | None], source: str) -> Adapter:
    """The adapters of the parts of a fused layer as one that has exactly their deltas; None where a part has none.

    LoRA and LoHa ranks add up; parts that share their down factor (as `split` leaves them) keep it. UserError for LoKr, which has no
    such form.
    """
    present = [adapter for adapter in adapters if adapter is not None]
    kinds = {adapter.kind for adapter in present}
    if len(kinds) != 1 or kinds & {LOKR, ""} or (kinds == {FULL} and len(present) < len(adapters)):
        raise UserError(f"{source}: its parts ({', '.join(sorted(kinds))}) cannot be fused into one layer")
    rows = _fused_row_counts(adapters)
    kind = kinds.pop()
    if kind == FULL:
        fused = {name: _stacked([a.parts[name] for a in present]) for name in ("diff", "diff_b") if all(name in a.parts for a in present)}
        return Adapter(fused, source)
    if kind == LORA and len(present) == len(adapters) and _share(present, DOWN):
        fused = {DOWN: present[0].parts[DOWN], UP: _stacked([adapter.parts[UP] for adapter in present])}
        return _with_extras(fused, present, adapters, source, present[0].alpha)
    scale = present[0].scale
    same = all(adapter.scale == scale for adapter in present)
    rank = sum(adapter.rank for adapter in present)
    fused = {}
    for up, down in ((UP, DOWN),) if kind == LORA else (("hada_w1_a", "hada_w1_b"), ("hada_w2_a", "hada_w2_b")):
        carries = not same and up != "hada_w2_a"
        ups = [scaled(a.parts[up], a.scale if carries else 1.0) if a is not None else None for a in adapters]
        fused[up] = _block_diagonal(ups, rows)
        fused[down] = _stacked([adapter.parts[down] for adapter in present])
    return _with_extras(fused, present, adapters, source, scale * rank if same else float(rank))


def _with_extras(
    fused: dict[str, Part], present: Sequence[Adapter], adapters: Sequence[Adapter | None], source: str, alpha: float | None
) -> Adapter:
    for name in _EXTRA_ROWS:
        if any(name in adapter.parts for adapter in present):
            if len(present) < len(adapters) or not all(name in adapter.parts for adapter in present):
                raise UserError(f"{source}: some of its parts have {name} and some not; they cannot be fused into one layer")
            fused[name] = _stacked([adapter.parts[name] for adapter in present])
    if alpha is not None:
        alphas = [adapter.parts[ALPHA] for adapter in present if ALPHA in adapter.parts]
        dtype = alphas[0].dtype if alphas else "F32"
        fused[ALPHA] = number(alpha, dtype if is_float(dtype) or float(alpha).is_integer() else "F32")
    return Adapter(fused, source, alpha)


def _share(adapters: Sequence[Adapter], name: str) -> bool:
    first = adapters[0]
    alike = (a.parts[name].shape == first.parts[name].shape and a.alpha == first.alpha for a in adapters)
    if not all(alike) or len({adapter.parts[name].dtype for adapter in adapters}) != 1:
        return False
    content = first.parts[name].make()
    return all(np.array_equal(content, adapter.parts[name].make()) for adapter in adapters[1:])


def _row_counts(adapter: Adapter, parts: int) -> list[int]:
    """Rows of each part of a fused layer: equal thirds, or three as high as the layer is wide and the rest (HunyuanVideo's linear1)."""
    size = adapter.size()
    rows = size[0] if size else adapter.parts["diff_b"].shape[0]
    if parts == 3:
        return [rows // 3] * 3
    width = size[1] if size else rows // 7
    if rows <= 3 * width:
        raise UserError(f"{adapter.source}: {rows} rows are too few for three of {width} and a rest; it belongs to another model")
    return [width, width, width, rows - 3 * width]


def _fused_row_counts(adapters: Sequence[Adapter | None]) -> list[int]:
    """Rows of each part; where a part is missing, as in the model family: q, k, v as wide as the input, the rest four times that."""
    sizes = [adapter.size() if adapter else None for adapter in adapters]
    width = next((size[1] for size in sizes if size), 0)
    usual = [width, width, width, 4 * width]
    return [size[0] if size else usual[index] for index, size in enumerate(sizes)]


def _rows(adapter: Adapter, start: int, stop: int) -> Adapter:
    cut = dict(adapter.parts)
    if "lokr_w1" in cut or "lokr_w1_a" in cut:
        height = _kron_size({name: part.shape for name, part in cut.items()}, "lokr_w2")[0]
        if start % height or stop % height:
            raise UserError(f"{adapter.source}: this LoKr has blocks of {height} rows and cannot be split at row {start or stop}")
        start, stop = start // height, stop // height
    for name in (*_ROWS[adapter.kind], *_EXTRA_ROWS):
        if name in cut and (name != "dora_scale" or cut[name].shape[0] > 1):
            cut[name] = _slice(cut[name], start, stop)
    return Adapter(cut, adapter.source, adapter.alpha)


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


def _kron_size(shapes: Mapping[str, tuple[int, ...]], name: str) -> tuple[int, int]:
    if name in shapes:
        return shapes[name][0], prod(shapes[name][1:])
    return shapes[f"{name}_a"][0], prod(shapes[f"{name}_b"][1:])
