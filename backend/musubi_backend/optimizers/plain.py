"""SinkGD and ANLO: a direction from the gradient alone, with little or no state."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .exact_state import ExactState
from .rounding import exact, write_back


class Sinkgd(ExactState):
    """SinkGD (arXiv:2502.06742): rows and columns of the gradient brought to the same norm in turns, instead of averages of squares; with
    momentum, as the Automagic series has it. Weights of another shape than a matrix are taken as one row for each of their outputs."""

    def __init__(
        self, params: Any, lr: float = 5e-5, beta1: float = 0.9, weight_decay: float = 0.1, *, sinkgd_iters: int = 1,
        stochastic_rounding: bool = True,
    ) -> None:  # fmt: skip
        settings = {"lr": lr, "beta1": beta1, "weight_decay": weight_decay, "sinkgd_iters": sinkgd_iters}
        super().__init__(params, {**settings, "stochastic_rounding": stochastic_rounding})

    def _step_group(self, group: dict[str, Any]) -> None:
        for index, parameter in enumerate(_learning(group)):
            state, dtype = self.state[parameter], exact(parameter.dtype)
            grad, weight = parameter.grad.to(dtype), parameter.to(dtype)  # type: ignore[union-attr]
            state["step"] = state.get("step", 0) + 1
            momentum = state.setdefault("exp_avg", torch.zeros_like(grad))
            momentum.lerp_(grad, 1 - group["beta1"])
            direction = balanced(
                momentum.reshape(len(momentum), -1) if momentum.ndim > 1 else momentum.reshape(1, -1), group["sinkgd_iters"]
            )
            weight.mul_(1 - group["lr"] * group["weight_decay"])
            weight.sub_(direction.view(grad.shape) * group["lr"])
            if weight is not parameter:
                write_back([parameter], weight.reshape(1, -1), state["step"] * 100_003 + index if group["stochastic_rounding"] else None)


def _learning(group: dict[str, Any]) -> list[Tensor]:
    return [weight for weight in group["params"] if weight.grad is not None]


def balanced(matrix: Tensor, iterations: int) -> Tensor:
    """[n, m] with rows of the norm sqrt(m) and then columns of sqrt(n), again and again."""
    rows, columns = matrix.shape
    for _ in range(iterations):
        matrix = matrix * (columns**0.5 / matrix.norm(dim=1, keepdim=True).clamp_min(1e-30))
        matrix = matrix * (rows**0.5 / matrix.norm(dim=0, keepdim=True).clamp_min(1e-30))
    return matrix


class ANLO(ExactState):
    """A gradient descent whose gradient has the norm 1 over all weights of a group, and, as a whole or mixed by the two weights, of each
    tensor. It keeps nothing."""

    def __init__(
        self, params: Any, lr: float = 1e-4, eps: float = 1e-8, weight_decay: float = 1e-2, *, global_norm_weight: float = 1.0,
        layer_norm_weight: float = 0.0,
    ) -> None:  # fmt: skip
        if not global_norm_weight and not layer_norm_weight:
            raise ValueError("global_norm_weight and layer_norm_weight are both 0: nothing would be trained")
        parts = {"global_norm_weight": global_norm_weight, "layer_norm_weight": layer_norm_weight}
        super().__init__(params, {"lr": lr, "eps": eps, "weight_decay": weight_decay, **parts})

    def _step_group(self, group: dict[str, Any]) -> None:
        weights = _learning(group)
        if not weights:
            return
        norms = [weight.grad.float().norm() for weight in weights]  # type: ignore[union-attr]
        whole = torch.stack([norm.to(norms[0].device) for norm in norms]).norm()
        for weight, norm in zip(weights, norms, strict=True):
            factor = group["global_norm_weight"] / (whole.to(norm.device) + group["eps"])
            factor = factor + group["layer_norm_weight"] / (norm + group["eps"])
            weight.mul_(1 - group["lr"] * group["weight_decay"])
            weight.sub_((weight.grad.float() * (factor * group["lr"])).to(weight.dtype))  # type: ignore[union-attr]
