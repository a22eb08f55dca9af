"""What cached tensors must be like to be trained: dtype and shape, read from a cache's header; and what their values must be.

A form's shape has one entry per side: a number, a `range`, a name (equal wherever it stands among the tensors of one file), or None for
any size. `FRAMES`, `HEIGHT` and `WIDTH` are those of the main latents.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, TypeAlias

from ..weights.safetensors_file import DTYPE_BITS
from . import tensor_keys

if TYPE_CHECKING:
    from torch import Tensor

    from ..weights.safetensors_file import Header, TensorInfo

Side: TypeAlias = "int | str | range | None"
Shape: TypeAlias = "tuple[Side, ...]"

FRAMES, HEIGHT, WIDTH = "frames", "height", "width"
_DTYPES = {"floats": ("BF16", "F16", "F32"), "whole": ("I64", "I32"), "mask": ("BOOL", "I64", "I32", "U8"), "any": tuple(DTYPE_BITS)}
_LATEST = 2**20  # as a time in latent frames beyond any use


@dataclass(frozen=True)
class Form:
    """kind: floats, whole (numbers from 0 up), mask (1 or true on tokens, which stand before padding), any. shapes: any one of them; None:
    whatever shape. hint: said where a tensor has none of them."""

    kind: Literal["floats", "whole", "mask", "any"]
    shapes: tuple[Shape, ...] | None = None
    optional: bool = False
    hint: str = ""


def floats(*shapes: Shape, optional: bool = False, hint: str = "") -> Form:
    return Form("floats", shapes, optional, hint)


def whole(shape: Shape, *, optional: bool = False) -> Form:
    return Form("whole", (shape,), optional)


def mask(shape: Shape) -> Form:
    return Form("mask", (shape,))


def main_latents(channels: int, rank: int = 4) -> dict[str, Form]:
    """The form of the tensor that every latent cache has, under its base name. rank: see `Card.latent_rank`."""
    return {tensor_keys.LATENTS: floats((channels, *((FRAMES,) if rank == 4 else ()), HEIGHT, WIDTH))}


@dataclass(frozen=True)
class CacheForms:
    """By base name, of one item's latent cache and of its text cache. Tensors of other names are not read."""

    latents: Mapping[str, Form]
    texts: Mapping[str, Form] = field(default_factory=dict)


def problem(header: Header, forms: Mapping[str, Form]) -> str | None:
    """Why a cache with this header cannot be trained; None when it can."""
    found: dict[str, list[str]] = {}
    for name in header.tensors:
        found.setdefault(tensor_keys.base_name(name), []).append(name)
    lacking = sorted(base for base, form in forms.items() if base not in found and not form.optional)
    if lacking:
        return f"it lacks {', '.join(lacking)}, which this task trains with"
    sides: dict[str, int] = {}
    for base, form in forms.items():
        names = found.get(base, [])
        if len(names) > 1:
            return f"it holds {base} more than once ({', '.join(names)})"
        reason = _unlike(base, header.tensors[names[0]], form, sides) if names else None
        if reason is not None:
            return reason
    odd = [side for side in (HEIGHT, WIDTH) if sides.get(side, 0) % 2]
    return f"its latents have an odd {odd[0]}, {sides[odd[0]]}, which the transformer cannot take" if odd else None


def stored_names(header: Header, forms: Mapping[str, Form]) -> dict[str, str]:
    """Stored name -> what training calls the tensor (still with `varlen_`), of those that the forms name."""
    named = {}
    for name in header.tensors:
        base = tensor_keys.base_name(name)
        if base in forms:
            named[name] = (tensor_keys.VARIABLE_LENGTH if tensor_keys.is_variable_length(name) else "") + base
    return named


def unfit_values(tensor: Tensor, form: Form) -> str | None:
    """Why a tensor of the right form cannot be trained with; None when it can."""
    if form.kind == "floats":
        return None if bool(tensor.isfinite().all()) else "holds numbers that are not finite"
    if form.kind == "whole":
        fits = bool(((tensor >= 0) & (tensor <= _LATEST)).all())
        return None if fits else "holds positions that no video has"
    if form.kind == "mask":
        tokens = tensor.long()
        fits = bool(((tokens == 0) | (tokens == 1)).all()) and bool((tokens.diff(dim=-1) <= 0).all())
        return None if fits else "is not a mask of tokens with padding at the end"
    return None


def _unlike(base: str, info: TensorInfo, form: Form, sides: dict[str, int]) -> str | None:
    if info.dtype not in _DTYPES[form.kind]:
        return f"it holds {base} in {info.dtype}, which cannot be trained with"
    if form.shapes is None or any(_fits(info.shape, shape, sides) for shape in form.shapes):
        return None
    wanted = " or ".join(_by(shape, sides) for shape in form.shapes)
    return f"it holds {base} of {'x'.join(map(str, info.shape)) or 'one number'}, and {wanted} is needed{form.hint}"


def _fits(found: tuple[int, ...], shape: Shape, sides: dict[str, int]) -> bool:
    if len(found) != len(shape) or 0 in found:
        return False
    named = {side: size for size, side in zip(found, shape, strict=True) if isinstance(side, str)}
    known = {**named, **sides}
    for size, side in zip(found, shape, strict=True):
        wanted = known[side] if isinstance(side, str) else side
        if wanted is not None and (size not in wanted if isinstance(wanted, range) else size != wanted):
            return False
    sides |= {name: size for name, size in named.items() if name not in sides}
    return True


def _by(shape: Shape, sides: dict[str, int]) -> str:
    words = []
    for side in shape:
        if isinstance(side, range):
            words.append(f"{side.start}…{side[-1]}")
        elif isinstance(side, str):
            words.append(str(sides.get(side, side)))
        else:
            words.append("any" if side is None else str(side))
    return "x".join(words)
