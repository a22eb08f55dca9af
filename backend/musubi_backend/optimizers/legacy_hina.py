"""The rule of HinaAdamWOptimizer as its program has it (hinablue/sd-scripts 0a888dc), for runs that are to be like those.

Its "AGR" amplifies, and its "ADOPT" divides by the squares of the step before without a bound: a weight whose first gradient is 0, as that
of every down matrix of a LoRA, is thrown far away in the second step.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .pairing import DOWN, OTHER, UP, W1, W2, by_name, role
from .stages import dynamic_weight_decay

State = dict[str, Any]
DEFAULTS: dict[str, Any] = {
    "weight_decay": 0.01, "use_spd": True, "use_cautious": True, "use_orthogonal_grad": False, "use_adopt_stability": True,
    "use_grams": True, "use_agr": True, "use_tam": True, "tam_beta": 0.999, "dynamic_weight_decay": True, "alora_ratio": 16.0,
}  # fmt: skip


def update(group: dict[str, Any], states: Any, names: list[str]) -> None:
    """One step of a group. names: of its weights; empty where there are none."""
    weights = group["params"]
    parts = [role(name)[1] for name in names] or [OTHER] * len(weights)
    partners: dict[int, Tensor] = {}
    for pair in by_name(names):
        partners[pair.first], partners[pair.second] = weights[pair.second], weights[pair.first]
    for index, p in enumerate(weights):
        if p.grad is not None:
            _one(group, states[p], p, p.grad.clone(), parts[index], partners.get(index))


def _one(group: dict[str, Any], state: State, p: Tensor, g: Tensor, part: str, partner: Tensor | None) -> None:
    if not state:
        state |= {"step": 0, "exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
        if group["use_spd"]:
            state["anchor"] = p.detach().clone()
    state["step"] += 1
    step, rate, (beta1, beta2), eps = state["step"], group["lr"], group["betas"], group["eps"]
    if group["use_orthogonal_grad"] and p.ndim >= 2:
        g = g - (p * g).sum() / (p * p).sum().clamp_min(1e-30) * p
    if group["use_agr"]:
        g = g * (1 + g.sum().abs() / g.norm().clamp_min(1e-30))
    m, v = state["exp_avg"], state["exp_avg_sq"]
    before = v.clone()
    m.mul_(beta1).add_(g, alpha=1 - beta1)
    v.mul_(beta2).addcmul_(g, g, value=1 - beta2)
    below = before if group["use_adopt_stability"] and step > 1 else v
    u = m / (below.sqrt() + eps)
    size = rate * math.sqrt(1 - beta2**step) / (1 - beta1**step)
    if group["use_tam"]:
        alignment = state.setdefault("alignment", torch.zeros((), device=p.device))
        lengths = m.norm() * g.norm()
        cosine = torch.where(lengths > 0, (m * g).sum() / lengths.clamp_min(1e-30), 0.0)
        alignment.mul_(group["tam_beta"]).add_(cosine, alpha=1 - group["tam_beta"])
        u = u * ((1 + alignment) / 2)
    if group["use_grams"]:
        u = u.abs() * g.sign()
    if group["use_cautious"]:
        u = u * (u * g > 0)
    p.sub_(u * (size * _factor(group, part, p, partner)))
    p.mul_(1 - rate * group["weight_decay"] * _decay(group, part, step))
    if group["use_spd"]:
        away = p - state["anchor"]
        p.sub_(away * (rate * group["spd_lambda"] * away.norm() / p.norm().clamp_min(1e-30)))


def _factor(group: dict[str, Any], part: str, p: Tensor, partner: Tensor | None) -> Tensor | float:
    if not group["use_alora"]:
        return 1.0
    if part == DOWN and partner is not None:
        product = partner.flatten(1) @ p.flatten(1)
        learned: Tensor = 1 / (1 + product.norm(dim=1).mean())
        return learned
    if part == UP and partner is None:
        return float(group["alora_ratio"])
    if part in (W1, W2) and partner is not None:
        factor = 1 / (1 + 0.3 * p.norm() * partner.norm())
        share: Tensor | float = factor * 0.6 * group["alora_ratio"] if part == W2 else factor
        return share
    return 1.0


def _decay(group: dict[str, Any], part: str, step: int) -> float:
    transition, factor, least = group["wd_transition_steps"], group["wd_decay_factor"], group["wd_min_ratio"]
    if not group["dynamic_weight_decay"] or part == OTHER or step <= transition:
        return 1.0
    if part in (W1, W2):
        share: float = max(1.5 * least, (factor**0.7) ** min((step - transition) / transition, 1.5))
        return share
    return dynamic_weight_decay(step, transition, factor, least)
