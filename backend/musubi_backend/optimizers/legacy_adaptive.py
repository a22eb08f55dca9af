"""The rule of AdaptiveHinaAdamW as its program has it (hinablue/sd-scripts 0a888dc), for runs that are to be like those.

Its "AGR" clips to a norm of 1, "ADOPT" keeps the larger of two squares, "TAM" and "Cautious" scale whole tensors, "SPD" always pulls, and
above `max_lr` its mask lowers the rate in silence. What it forgets on a save is kept here. GRAMS does nothing in it.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .stages import dynamic_weight_decay

State = dict[str, Any]
DEFAULTS: dict[str, Any] = {
    "weight_decay": 0.01, "use_spd": True, "use_cautious": True, "use_orthogonal_grad": False, "use_adopt_stability": True,
    "use_grams": True, "use_agr": True, "use_tam": True, "tam_beta": 0.999, "dynamic_weight_decay": True,
}  # fmt: skip
_KEPT = 5  # norms of gradients, one at each interval


def update(group: dict[str, Any], states: Any, first_rate: float) -> None:
    """One step of a group. states: of an optimizer; first_rate: the learning rate that it was made with."""
    for parameter in group["params"]:
        if parameter.grad is not None:
            _one(group, states[parameter], parameter, parameter.grad.clone(), first_rate)


def _one(group: dict[str, Any], state: State, p: Tensor, g: Tensor, first_rate: float) -> None:
    if not state:
        state |= {"step": 0, "exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
        if group["use_spd"]:
            state["anchor"] = p.detach().clone()
    state["step"] += 1
    step, rate, (beta1, beta2) = state["step"], group["lr"], group["betas"]
    if group["use_dynamic_adaptation"] and step % group["relationship_discovery_interval"] == 0:
        _refresh_importance(group, state, p, g)
    if group["use_agr"]:
        g = g / g.norm().clamp_min(1.0)
    if group["use_orthogonal_grad"]:
        rest = g - (p * g).sum() / ((p * p).sum() + 1e-30) * p
        g = torch.where(p.norm() > 1e-30, rest * (g.norm() / (rest.norm() + 1e-30)), g)
    m, v = state["exp_avg"], state["exp_avg_sq"]
    before = v.clone()
    m.mul_(beta1).add_(g, alpha=1 - beta1)
    v.mul_(beta2).addcmul_(g, g, value=1 - beta2)
    largest = torch.maximum(v, before) if group["use_adopt_stability"] else v
    root = math.sqrt(1 - beta2**step)
    u = m / (1 - beta1**step) / (largest.sqrt() / root + group["eps"])
    if group["use_tam"]:
        alignment = state.setdefault("alignment", torch.zeros((), dtype=torch.float32, device=p.device))
        alignment.mul_(group["tam_beta"]).add_(_cosine(m, g).float(), alpha=1 - group["tam_beta"])
        u = u * ((1 + alignment) / 2).to(u.dtype)
    if group["use_cautious"]:
        u = torch.where(_cosine(u, g) < 0.1, u * 0.5, u)
    p.sub_(u * (rate * _scale(group, state, p, g, first_rate)).to(u.dtype))
    decay = group["weight_decay"]
    if group["dynamic_weight_decay"]:
        decay *= dynamic_weight_decay(step, group["wd_transition_steps"], group["wd_decay_factor"], group["wd_min_ratio"])
    p.mul_(1 - rate * decay)
    if group["use_spd"]:
        away = p - state["anchor"]
        p.sub_(away * (rate * group["spd_lambda"] * away.norm() / p.norm().clamp_min(1e-30)))


def _cosine(one: Tensor, other: Tensor) -> Tensor:
    lengths = one.norm() * other.norm()
    return torch.where(lengths > 0, (one * other).sum() / lengths.clamp_min(1e-30), 0.0)


def _scale(group: dict[str, Any], state: State, p: Tensor, g: Tensor, first_rate: float) -> Tensor:
    """What the rate is multiplied with, by the mask and the importance; fp32."""
    scale = torch.ones((), device=p.device)
    if group["use_lr_mask"]:
        if "mask" not in state:
            state["mask"] = torch.full(p.shape, first_rate, dtype=torch.float32, device=p.device)
            state["polarity"] = torch.zeros(p.shape, dtype=torch.bool, device=p.device)
        if state["step"] < group["warmup_steps"]:
            up = g > 0
            bump = torch.where(up == state["polarity"], group["lr_bump"], -group["lr_bump"])
            state["mask"].add_(bump).clamp_(group["min_lr"], group["max_lr"])
            state["polarity"] = up
        scale = state["mask"].mean() / first_rate if first_rate else state["mask"].mean()
    if group["use_dynamic_adaptation"]:
        importance = state.setdefault("importance", torch.ones((), device=p.device))
        scale = scale * (importance * group["adaptation_strength"]).clamp(0.1, 3.0).clamp(0.01, 5.0)
    return scale.clamp(1e-3, 10.0) if group["use_lr_mask"] or group["use_dynamic_adaptation"] else scale


def _refresh_importance(group: dict[str, Any], state: State, p: Tensor, g: Tensor) -> None:
    size, norm = p.norm().float(), g.norm().float()
    steady, seen = torch.ones_like(norm), state.setdefault("seen", 0)
    history = state.setdefault("norms", norm.new_zeros(_KEPT))
    if seen > 1:  # of the looks before this one
        last = history[-seen:]
        steady = (1 - last.std() / last.mean().clamp_min(1e-30)).clamp_min(0.1)
    state["norms"], state["seen"] = torch.cat([history[1:], norm.reshape(1)]), min(seen + 1, _KEPT)
    reference = state.setdefault("reference", size.clone())
    change = (size - reference).abs() / reference.clamp_min(1e-30)
    spread = p.float().var() if p.numel() > 1 else torch.zeros_like(norm)
    inner = spread * (1 - (p.abs() < 1e-6).float().mean())
    value = (0.4 * steady * norm + 0.3 * change + 0.3 * inner).clamp_min(0.01)
    importance = state.setdefault("importance", torch.ones((), device=p.device))
    importance.mul_(group["importance_decay"]).add_(value, alpha=1 - group["importance_decay"])
