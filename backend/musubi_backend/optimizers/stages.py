"""The published techniques, each a function over the tensors of one bucket (one device, one dtype), in place where it says so.

They read and write lists of tensors with torch's `_foreach` kernels. Numbers per tensor stay on the device, one vector for the whole
bucket: nothing waits for the device. Papers are named with each; every formula is checked in float64 against an independent oracle.
"""

from __future__ import annotations

import torch
from torch import Tensor

Tensors = list[Tensor]
_LEAST = 1e-30


def norms(tensors: Tensors, order: float = 2) -> Tensor:
    """Frobenius norm (or sum of magnitudes) of each tensor: [tensors]. On a CPU a product with itself is the fastest way, elsewhere one
    kernel for all."""
    if order == 2 and tensors[0].device.type == "cpu":
        return dots(tensors, tensors).sqrt()
    return torch.stack(list(torch._foreach_norm(tensors, order)))


def agreements(left: Tensors, right: Tensors) -> Tensor:
    """In how many places of each pair the signs are the same, less those where they differ: [tensors]."""
    signs = list(torch._foreach_mul(left, right))
    torch._foreach_sign_(signs)
    if signs[0].device.type == "cpu":
        return torch.stack([sign.sum() for sign in signs])
    every = norms(signs, 1)
    torch._foreach_clamp_min_(signs, 0.0)
    return 2 * norms(signs, 1) - every


def same_signs(left: Tensors, right: Tensors) -> Tensors:
    """1 where the signs of a pair are the same, else 0."""
    same = list(torch._foreach_mul(left, right))
    if same[0].device.type == "cpu":
        return [one.gt_(0) for one in same]
    torch._foreach_sign_(same)
    torch._foreach_clamp_min_(same, 0.0)
    return same


def dots(left: Tensors, right: Tensors) -> Tensor:
    """Inner product of each pair: [tensors]."""
    return torch.stack([torch.dot(a.reshape(-1), b.reshape(-1)) for a, b in zip(left, right, strict=True)])


def sizes(tensors: Tensors) -> Tensor:
    """Numbers in each tensor: [tensors], float."""
    return torch.tensor([float(tensor.numel()) for tensor in tensors], dtype=tensors[0].dtype).to(tensors[0].device, non_blocking=True)


def adaptive_gradients(grads: Tensors) -> Tensors:
    """AGR (arXiv:2407.16944): g(1 - |g| / sum|g|). Close to no change for tensors of many numbers."""
    shares = list(torch._foreach_abs(grads))
    torch._foreach_div_(shares, list((-norms(shares, 1).clamp_min(_LEAST)).unbind()))
    torch._foreach_add_(shares, 1.0)
    torch._foreach_mul_(shares, grads)
    return shares


def orthogonal_gradients(grads: Tensors, weights: Tensors) -> Tensors:
    """OrthoGrad (arXiv:2501.04697): what of g is along w is taken out, and the norm of g restored."""
    along = dots(weights, grads) / (dots(weights, weights) + _LEAST)
    projected = list(torch._foreach_mul(weights, list((-along).unbind())))
    torch._foreach_add_(projected, grads)
    torch._foreach_mul_(projected, list((norms(grads) / (norms(projected) + _LEAST)).unbind()))
    return projected


def torque(momenta: Tensors, grads: Tensors, torques: Tensors, beta: float) -> Tensors:
    """TAM (arXiv:2412.18790): the gradient times (1 + s)/2, where s is the average of its cosine with the momentum before it. With both
    bias corrections of Adam, so that AdamW's learning rate fits. `torques` (0-d) are updated in place."""
    lengths = norms(momenta) * norms(grads)
    cosine = torch.where(lengths > 0, dots(momenta, grads) / lengths.clamp_min(_LEAST), 0.0)
    torch._foreach_lerp_(torques, list(cosine.unbind()), 1 - beta)
    return list(torch._foreach_mul(grads, list(((1 + torch.stack(torques)) / 2).unbind())))


def adam(
    momenta: Tensors, squares: Tensors, grads: Tensors, turned: Tensors, betas: tuple[float, float], eps: float | Tensor,
    factor: float | Tensor,
) -> Tensors:  # fmt: skip
    """Moments of Adam (arXiv:1711.05101), in place, and factor * m / (sqrt(v) + eps) as new tensors. turned: what is averaged into m,
    `grads` unless torque changed them."""
    torch._foreach_lerp_(momenta, turned, 1 - betas[0])
    torch._foreach_mul_(squares, betas[1])
    torch._foreach_addcmul_(squares, grads, grads, 1 - betas[1])
    below = list(torch._foreach_sqrt(squares))
    torch._foreach_add_(below, eps)
    updates = list(torch._foreach_div(momenta, below))
    torch._foreach_mul_(updates, factor)
    return updates


def adopt(momenta: Tensors, squares: Tensors, grads: Tensors, betas: tuple[float, float], eps: float, step: int) -> Tensors | None:
    """ADOPT (arXiv:2411.02853, algorithm 2): g over the root of the squares before it, clipped to step^1/4, averaged. None in the first
    step, which only fills the squares. step: 1, 2, ..."""
    if step == 1:
        torch._foreach_copy_(squares, list(torch._foreach_mul(grads, grads)))
        return None
    below = list(torch._foreach_sqrt(squares))
    torch._foreach_clamp_min_(below, eps)
    scaled = list(torch._foreach_div(grads, below))
    limit = (step - 1) ** 0.25
    torch._foreach_clamp_min_(scaled, -limit)
    torch._foreach_clamp_max_(scaled, limit)
    torch._foreach_lerp_(momenta, scaled, 1 - betas[0])
    torch._foreach_mul_(squares, betas[1])
    torch._foreach_addcmul_(squares, grads, grads, 1 - betas[1])
    return list(torch._foreach_mul(momenta, 1.0))


def cautious(updates: Tensors, grads: Tensors) -> Tensor:
    """Cautious (arXiv:2411.16085): updates against the gradient become 0, in place. Returns what each tensor is to be multiplied with, as
    fewer numbers move: [tensors]."""
    agree = same_signs(updates, grads)
    torch._foreach_mul_(updates, agree)
    return 1 / (norms(agree).square() / sizes(updates)).clamp_min(1e-3)


def grams(updates: Tensors, grads: Tensors) -> None:
    """GRAMS (arXiv:2412.17107): the size of the update and the sign of the gradient, in place."""
    torch._foreach_abs_(updates)
    torch._foreach_mul_(updates, list(torch._foreach_sign(grads)))


class Projection:
    """SPD (arXiv:2411.01713): where a step would take the weights further from their anchor although the gradient says back, a part of
    the way from the anchor is taken back. Replaces weight decay; its strength is not multiplied by the learning rate.

    anchors: where the weights began; None for 0, as the paper has it for LoRA.
    """

    def __init__(self, weights: Tensors, anchors: Tensors | None, grads: Tensors) -> None:
        """Before the step. grads: as the loss gave them."""
        self._anchors = anchors
        self._away = weights if anchors is None else list(torch._foreach_sub(weights, anchors))
        self._before = norms(self._away)
        self._selected = dots(grads, self._away) > 0

    def apply(self, weights: Tensors, updates: Tensors, strength: float) -> None:
        """After the step, in place. updates: what was taken from the weights in it."""
        away = weights
        if self._anchors is not None:
            away = self._away
            torch._foreach_sub_(away, updates)
        after = norms(away)
        part = ((after - self._before) / after.clamp_min(_LEAST)).clamp(0, 1)
        back = torch.where(self._selected, part * strength, 0.0)
        if self._anchors is None:
            torch._foreach_mul_(weights, list((1 - back).unbind()))
        else:
            torch._foreach_lerp_(weights, self._anchors, list(back.unbind()))


def allora(updates: Tensors, weights: Tensors, eta: float) -> None:
    """ALLoRA (arXiv:2410.09692): each row times (|row| + 1/eta^2)^-1/2, in place; for the matrices that begin as 0."""
    for update, weight in zip(updates, weights, strict=True):
        rows = weight.flatten(1).norm(dim=1) if weight.ndim > 1 else weight.abs()
        update.mul_((rows + 1 / eta**2).rsqrt().reshape(-1, *[1] * (weight.ndim - 1)))


def dynamic_weight_decay(step: int, transition: int, factor: float, least: float) -> float:
    """What weight decay is multiplied with: 1 up to `transition`, then `factor` to the power of how many times longer the run is, at
    most 2, and never under `least`."""
    if step <= transition:
        return 1.0
    share: float = max(least, factor ** min((step - transition) / transition, 2.0))
    return share
