"""The published techniques, each a function over the tensors of one bucket: a matrix [tensors, numbers] of one device and dtype, in place
where it says so.

Numbers per tensor stay on the device, as [tensors, 1]: nothing waits for the device. Papers are named with each; every formula is checked
in float64 against an independent oracle.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.optim.adamw import adamw

_LEAST = 1e-30


def norms(tensors: Tensor) -> Tensor:
    """Frobenius norm of each tensor: [tensors, 1]."""
    found: Tensor = torch.linalg.vector_norm(tensors, dim=1, keepdim=True)
    return found


def dots(left: Tensor, right: Tensor, scratch: Tensor | None = None) -> Tensor:
    """Inner product of each pair: [tensors, 1]. scratch: for the products."""
    return torch.mul(left, right, out=scratch).sum(1, keepdim=True)


def agreements(left: Tensor, right: Tensor, scratch: Tensor | None = None) -> Tensor:
    """The share of places of each pair in which the signs are the same, less that in which they differ: [tensors, 1]. scratch: for the
    products."""
    return torch.mul(left, right, out=scratch).sign_().mean(1, keepdim=True)


def adaptive_gradients(grads: Tensor) -> Tensor:
    """AGR (arXiv:2407.16944): g(1 - |g| / sum|g|). Close to no change for tensors of many numbers."""
    shares = grads.abs()
    return shares.div_(-shares.sum(1, keepdim=True).clamp_min(_LEAST)).add_(1.0).mul_(grads)


def orthogonal_gradients(grads: Tensor, weights: Tensor) -> Tensor:
    """OrthoGrad (arXiv:2501.04697): what of g is along w is taken out, and the norm of g restored."""
    along = dots(weights, grads) / (dots(weights, weights) + _LEAST)
    projected = torch.addcmul(grads, weights, along, value=-1)
    return projected.mul_(norms(grads) / (norms(projected) + _LEAST))


def torque(momenta: Tensor, grads: Tensor, torques: Tensor, beta: float) -> Tensor:
    """TAM (arXiv:2412.18790): the gradient times (1 + s)/2, where s is the average of its cosine with the momentum before it. With both
    bias corrections of Adam, so that AdamW's learning rate fits. `torques` [tensors, 1] are updated in place."""
    lengths = norms(momenta) * norms(grads)
    cosine = torch.where(lengths > 0, dots(momenta, grads) / lengths.clamp_min(_LEAST), 0.0)
    torques.lerp_(cosine, 1 - beta)
    return grads * ((1 + torques) / 2)


def adam(
    momenta: Tensor, squares: Tensor, grads: Tensor, turned: Tensor, betas: tuple[float, float], eps: float | Tensor
) -> Tensor:  # fmt: skip
    """Moments of Adam (arXiv:1711.05101), in place, and m / (sqrt(v) + eps). turned: what is averaged into m, `grads` unless torque
    changed them."""
    momenta.lerp_(turned, 1 - betas[0])
    squares.mul_(betas[1]).addcmul_(grads, grads, value=1 - betas[1])
    below = squares.sqrt().add_(eps)
    return torch.div(momenta, below, out=below)


def fused_adam(
    momenta: Tensor, squares: Tensor, grads: Tensor, betas: tuple[float, float], eps: float, step: int, updates: Tensor
) -> Tensor:  # fmt: skip
    """As `adam`, on a CPU or a CUDA device, with PyTorch's kernel that goes through the numbers once: what it takes from weights of 0 at a
    rate of -1, into `updates`. Both bias corrections are in it, and eps is added to the corrected root."""
    updates.zero_()
    before = grads.new_full((), step - 1, dtype=torch.float32)
    adamw(
        [updates], [grads], [momenta], [squares], [], [before], fused=True, amsgrad=False, beta1=betas[0], beta2=betas[1], lr=-1.0,
        weight_decay=0.0, eps=eps, maximize=False,
    )  # fmt: skip
    return updates


def adopt(momenta: Tensor, squares: Tensor, grads: Tensor, betas: tuple[float, float], eps: float, step: int) -> Tensor | None:
    """ADOPT (arXiv:2411.02853, algorithm 2): g over the root of the squares before it, clipped to step^1/4, averaged. None in the first
    step, which only fills the squares. step: 1, 2, ..."""
    if step == 1:
        torch.mul(grads, grads, out=squares)
        return None
    below = squares.sqrt().clamp_min_(eps)
    limit = (step - 1) ** 0.25
    momenta.lerp_(torch.div(grads, below, out=below).clamp_(-limit, limit), 1 - betas[0])
    squares.mul_(betas[1]).addcmul_(grads, grads, value=1 - betas[1])
    return momenta.clone()


def cautious(updates: Tensor, grads: Tensor, scratch: Tensor | None = None) -> Tensor:
    """Cautious (arXiv:2411.16085): updates against the gradient become 0, in place. Returns what each tensor is to be multiplied with, as
    fewer numbers move: [tensors, 1]. scratch: for which those are."""
    agree = torch.mul(updates, grads, out=scratch).gt_(0)
    updates.mul_(agree)
    return agree.mean(1, keepdim=True).clamp_min_(1e-3).reciprocal_()


def grams(updates: Tensor, grads: Tensor) -> None:
    """GRAMS (arXiv:2412.17107): the size of the update and the sign of the gradient, in place."""
    updates.abs_().mul_(grads.sign())


def project(
    weights: Tensor, anchors: Tensor | None, grads: Tensor, updates: Tensor, rate: float | Tensor, strength: float,
    scratch: Tensor | None = None,
) -> None:  # fmt: skip
    """The step of SPD (arXiv:2411.01713), in place: weights - rate * updates, and where that takes them further from their anchor although
    the gradient says back, a part of the way from the anchor is taken back. Replaces weight decay; `strength` is not multiplied by the
    learning rate.

    anchors: where the weights began; None for 0, as the paper has it for LoRA. grads: as the loss gave them. rate: also [tensors, 1].
    scratch: for products.
    """
    away = weights if anchors is None else weights.sub_(anchors)
    before, selected = norms(away), dots(grads, away, scratch).gt_(0)
    subtract(away, updates, rate)
    after = norms(away)
    back = before.neg_().add_(after).div_(after.clamp_min_(_LEAST)).clamp_(0, 1).mul_(selected)
    stays = back.mul_(-strength).add_(1)
    if anchors is None:
        weights.mul_(stays)
    else:
        torch.addcmul(anchors, away, stays, out=weights)


def subtract(weights: Tensor, updates: Tensor, rate: float | Tensor) -> None:
    """weights - rate * updates, in place. rate: also [tensors, 1]."""
    if isinstance(rate, Tensor):
        weights.addcmul_(updates, rate, value=-1)
    else:
        weights.sub_(updates, alpha=rate)


def allora(updates: Tensor, weights: Tensor, shape: torch.Size, eta: float) -> None:
    """ALLoRA (arXiv:2410.09692): each row times (|row| + 1/eta^2)^-1/2, in place; for the matrices that begin as 0. shape: of each."""
    count = len(weights), shape[0] if shape else 1, -1
    lengths = torch.linalg.vector_norm(weights.view(count), dim=2, keepdim=True)
    updates.view(count).mul_((lengths + 1 / eta**2).rsqrt())


def dynamic_weight_decay(step: int, transition: int, factor: float, least: float) -> float:
    """What weight decay is multiplied with: 1 up to `transition`, then `factor` to the power of how many times longer the run is, at
    most 2, and never under `least`."""
    if step <= transition:
        return 1.0
    share: float = max(least, factor ** min((step - transition) / transition, 2.0))
    return share
