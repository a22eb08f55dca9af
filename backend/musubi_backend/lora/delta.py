"""What the LoRA weights of one layer add to a weight: LoRA (arXiv 2106.09685), LoHa (2108.06098), LoKr (2309.14859), full differences;
each of them with DoRA's magnitudes too (2402.09353).

Parts have musubi-tuner's names (`lora_down.weight`, `hada_w1_a`, `lokr_w2_b`, `alpha`, ...), and the order of the arithmetic is its too,
so that merged weights are the same bits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod

import torch
from torch import Tensor

from ..errors import UserError
from .shapes import DORA, UP, WHOLE, size_of

Parts = Mapping[str, Tensor]
TUCKER = ("hada_t1", "hada_t2", "lokr_t2", "lora_mid.weight")
_BY_ROW = (UP, "hada_w1_a", "hada_w2_a", *WHOLE, DORA)


def merged(weight: Tensor, parts: Parts, multiplier: float, name: str) -> Tensor:
    """weight + multiplier * delta, in the wider dtype of both (fp8: in float16), on the weight's device.

    name: of the LoRA weights and its file, for the UserError when it is for a matrix of another size. The result is not cast back.
    """
    if weight.element_size() == 1 and weight.is_floating_point():
        weight, parts = weight.half(), {key: part.half() if part.is_floating_point() else part for key, part in parts.items()}
    parts = {key: part.to(weight.device) for key, part in parts.items()}
    check(weight.shape, parts, name)
    if DORA in parts or "set_weight" in parts:
        return _interpolated(weight, parts, multiplier)
    if "lora_down.weight" in parts:
        down, up = parts["lora_down.weight"], parts["lora_up.weight"]
        rank = down.shape[0]
        difference = _like(weight, up.flatten(1) @ down.flatten(1)).mul_(multiplier).mul_(parts.get("alpha", rank) / rank)
    else:
        difference = multiplier * _like(weight, delta(parts))
    same = difference.dtype == torch.promote_types(weight.dtype, difference.dtype)
    return difference.add_(weight) if same else weight + difference


def _interpolated(weight: Tensor, parts: Parts, multiplier: float) -> Tensor:
    """The weight on its way to what a DoRA or a whole new weight makes of it, in float32 at least: there at multiplier 1."""
    dtype = torch.promote_types(weight.dtype, torch.float32)
    weight, parts = weight.to(dtype), {name: part.to(dtype) for name, part in parts.items()}
    new = (
        _like(weight, parts["set_weight"]) if "set_weight" in parts else _with_magnitudes(weight + _like(weight, delta(parts)), parts[DORA])
    )
    return torch.lerp(weight, new, multiplier)


def _with_magnitudes(changed: Tensor, magnitudes: Tensor) -> Tensor:
    """magnitudes * changed / norm of changed: for each output (magnitudes [out, 1]), or for each input over all outputs ([1, in])."""
    if magnitudes.shape[1] == 1 and len(magnitudes) == len(changed):
        matrix, over = changed.reshape(len(changed), 1, -1), (1, 2)
    else:
        matrix, over = changed.reshape(len(changed), magnitudes.shape[1], -1), (0, 2)
    norm = torch.linalg.vector_norm(matrix, dim=over, keepdim=True).clamp_min(torch.finfo(changed.dtype).tiny)
    result: Tensor = (matrix * (magnitudes.reshape(norm.shape) / norm)).reshape(changed.shape)
    return result


def delta(parts: Parts) -> Tensor:
    """The difference [out, in] LoRA weights makes to its weight at strength 1, in the dtype of its factors."""
    if "lora_down.weight" in parts:
        down, up = parts["lora_down.weight"], parts["lora_up.weight"]
        return (up.flatten(1) @ down.flatten(1)) * _scale(parts, down.shape[0])
    if "hada_w1_a" in parts:
        product = (parts["hada_w1_a"] @ parts["hada_w1_b"]) * (parts["hada_w2_a"] @ parts["hada_w2_b"])
        return product * _scale(parts, parts["hada_w1_b"].shape[0])
    if "diff" in parts:
        return parts["diff"]
    first, second = _kron_factor(parts, "lokr_w1"), _kron_factor(parts, "lokr_w2")
    ranks = [parts[name].shape[0] for name in ("lokr_w2_b", "lokr_w1_b") if name in parts]
    product = torch.kron(first, second.contiguous())
    return product * _scale(parts, ranks[0]) if ranks else product


def rows_of(parts: Parts, start: int, stop: int) -> dict[str, Tensor] | None:
    """The LoRA weights of some rows of the weight; None for a LoKr, or norms over all rows, whose rows are not apart."""
    if DORA in parts and len(parts[DORA]) == 1:
        return None
    if "set_weight" in parts or "lora_down.weight" in parts or "hada_w1_a" in parts or "diff" in parts:
        return {name: part[start:stop] if name in _BY_ROW else part for name, part in parts.items()}
    return None


def merged_bias(bias: Tensor, parts: Parts, multiplier: float) -> Tensor:
    """A bias with the `diff_b` of LoRA weights; unchanged without one."""
    difference = parts.get("diff_b")
    return bias if difference is None else bias + multiplier * difference.to(bias.device).reshape(bias.shape)


def _scale(parts: Parts, rank: int) -> float:
    alpha = parts.get("alpha")
    return 1.0 if alpha is None else alpha.item() / rank


def _kron_factor(parts: Parts, name: str) -> Tensor:
    whole = parts.get(name)
    return parts[f"{name}_a"] @ parts[f"{name}_b"] if whole is None else whole


def _like(weight: Tensor, difference: Tensor) -> Tensor:
    return difference if difference.shape == weight.shape else difference.reshape(weight.shape)


def check(shape: Sequence[int], parts: Parts, name: str) -> None:
    """UserError when LoRA weights cannot be merged, or is for a matrix of another size."""
    for part in TUCKER:
        if part in parts:
            raise UserError(f"{name} has {part}: a LoRA with a Tucker decomposition cannot be merged")
    size = size_of({part: tensor.shape for part, tensor in parts.items()})
    if size is None:
        raise UserError(f"{name} in the LoRA holds nothing that changes a weight; the file is damaged, or of an unknown kind")
    rows, columns = size
    if rows * columns != prod(shape) or (len(shape) > 1 and rows != shape[0]):
        raise UserError(f"{name} changes a matrix of {rows}x{columns}, and the model's is {list(shape)}: it was trained on another model")
