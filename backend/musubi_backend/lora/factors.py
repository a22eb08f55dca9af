"""Deltas as products of two thin matrices: exactly where they are that already, else the nearest of a given rank.

The nearest product of a rank is the truncated singular value decomposition (Eckart and Young, 1936). Of a delta that is a product, it
comes from two small QR decompositions and never from the whole matrix.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .delta import delta

_EXACT_SIDE = 1536  # above this, the decomposition of a whole matrix takes minutes and is found by random projections instead
_OVERSAMPLING, _ITERATIONS = 16, 6


@dataclass(frozen=True)
class Factors:
    """up [out, r] @ down [r, in]. lost, norm: Frobenius norms of what is missing and of the whole."""

    up: Tensor
    down: Tensor
    lost: float = 0.0
    norm: float = 0.0

    def parts(self, inputs: Sequence[int]) -> dict[str, Tensor]:
        """As a LoRA file has them. inputs: shape of what one output is made of: (in,), or (in, ...kernel) for a convolution."""
        up = self.up.reshape(*self.up.shape, *[1] * (len(inputs) - 1))
        return {"lora_down.weight": self.down.reshape(-1, *inputs), "lora_up.weight": up, "alpha": torch.tensor(float(len(self.down)))}


def factors_of(parts: Mapping[str, Tensor], multiplier: float) -> Factors | None:
    """The exact factors (float32) of multiplier * delta of the LoRA weights of one layer; None where it is no product of thin matrices.

    A LoHa of rank r is a product of rank r²: rows of its left factors and columns of its right ones multiplied each with each.
    """
    parts = {name: part.float() for name, part in parts.items()}
    alpha = parts.get("alpha")
    if "lora_down.weight" in parts:
        down, up = parts["lora_down.weight"].flatten(1), parts["lora_up.weight"].flatten(1)
        scale = multiplier * (1.0 if alpha is None else alpha.item() / len(down))
        return Factors(up if scale == 1.0 else up * scale, down)
    if "hada_w1_a" not in parts:
        return None
    rank, columns = parts["hada_w1_b"].shape
    rows = len(parts["hada_w1_a"])
    if rank * rank > min(rows, columns):
        return None
    scale = multiplier * (1.0 if alpha is None else alpha.item() / rank)
    up = (parts["hada_w1_a"].unsqueeze(2) * parts["hada_w2_a"].unsqueeze(1)).reshape(rows, -1)
    down = (parts["hada_w1_b"].unsqueeze(1) * parts["hada_w2_b"].unsqueeze(0)).reshape(-1, columns)
    return Factors(up * scale, down)


def sum_of(several: Sequence[tuple[Mapping[str, Tensor], float]], rank: int | None) -> Factors | None:
    """The sum of several LoRA weights of one layer: exactly, all their ranks together, or the nearest of `rank`.

    None where no rank is given and one of them is no product of thin matrices. Without a rank nothing is measured: lost is 0.
    """
    found = [factors_of(parts, multiplier) for parts, multiplier in several]
    thin = [factors for factors in found if factors is not None]
    up, down = torch.cat([f.up for f in thin], 1) if thin else None, torch.cat([f.down for f in thin]) if thin else None
    if up is not None and down is not None and len(thin) == len(found):
        return Factors(up, down) if rank is None else nearest_product(up, down, rank)
    if rank is None:
        return None
    dense = [
        multiplier * delta({n: p.float() for n, p in parts.items()}).flatten(1)
        for (parts, multiplier), f in zip(several, found, strict=True)
        if not f
    ]
    whole = sum(dense[1:], dense[0])
    return nearest(whole if up is None or down is None else whole + up @ down, rank)


def nearest_product(up: Tensor, down: Tensor, rank: int) -> Factors:
    """The nearest product of `rank` to up @ down. It has no more rank than the product has."""
    left, upper = torch.linalg.qr(up)
    right, lower = torch.linalg.qr(down.t())
    u, values, v = torch.linalg.svd(upper @ lower.t(), full_matrices=False)
    return _cut(left @ u, values, v @ right.t(), rank)


def nearest(matrix: Tensor, rank: int) -> Factors:
    """The nearest product of `rank` to a matrix [out, in]; for large ones from random projections, with the real error measured."""
    if min(matrix.shape) <= _EXACT_SIDE or rank + _OVERSAMPLING >= min(matrix.shape) // 2:
        u, values, v = torch.linalg.svd(matrix, full_matrices=False)
        return _cut(u, values, v, rank)
    with torch.random.fork_rng():
        torch.manual_seed(0)  # the same matrices give the same file
        u, values, vectors = torch.svd_lowrank(matrix, rank + _OVERSAMPLING, niter=_ITERATIONS)
    cut = _cut(u, values, vectors.t(), rank)
    return Factors(cut.up, cut.down, float((matrix - cut.up @ cut.down).norm()), float(matrix.norm()))


def _cut(u: Tensor, values: Tensor, v: Tensor, rank: int) -> Factors:
    """The first `rank` singular values, the root of each in both factors."""
    lost, norm = float(values[rank:].norm()), float(values.norm())
    root = values[:rank].sqrt()
    return Factors((u[:, :rank] * root).contiguous(), (root[:, None] * v[:rank]).contiguous(), lost, norm)
