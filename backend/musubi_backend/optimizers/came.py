"""CAME (arXiv:2307.02047): Adafactor with confidence. Squares and instability are kept as means of rows and columns, so that a matrix costs
little more than its momentum. And the names of the Automagic series that stand on it.

`Automagic_CameAMP` of hinablue/sd-scripts is not CAME, starts with updates 80 times its rate and ends in the 8-bit form by diverging. Under
these names is the paper's rule with the mask of learning rates of `adaptation.py`; "COptim" is cautious (arXiv:2411.16085).
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from . import stages
from .adaptation import Mask
from .exact_state import ExactState
from .factored import inverse_root
from .moments import EightBit, Keeper, Whole
from .rounding import exact, write_back
from .rows import kept_numbers


class Came(ExactState):
    """The paper's rule; `use_lr_mask` and `use_cautious` are off in it."""

    def __init__(
        self, params: Any, lr: float = 2e-4, betas: tuple[float, float, float] = (0.9, 0.999, 0.9999),
        eps: tuple[float, float] = (1e-30, 1e-16), clip_threshold: float = 1.0, weight_decay: float = 0.0, *, use_cautious: bool = False,
        use_lr_mask: bool = False, lr_bump: float = 3e-6, min_lr: float = 1e-7, max_lr: float = 1e-3, warmup_steps: int = 500,
        stochastic_rounding: bool = True, eight_bit: bool = False,
    ) -> None:  # fmt: skip
        given = dict(locals())
        if min_lr > max_lr:
            raise ValueError(f"min_lr {min_lr} is above max_lr {max_lr}")
        self._keeper: Keeper = EightBit() if eight_bit else Whole()
        super().__init__(params, {name: value for name, value in given.items() if name not in ("self", "params", "__class__")})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        super().add_param_group(param_group)
        self.param_groups[-1].setdefault("first_rate", float(self.param_groups[-1]["lr"]))

    def _step_group(self, group: dict[str, Any]) -> None:
        for index, weight in enumerate(group["params"]):
            if weight.grad is not None:
                self._update(group, weight, index)

    def _update(self, group: dict[str, Any], parameter: Tensor, index: int) -> None:
        state, dtype = self.state[parameter], exact(parameter.dtype)
        weight, grad = parameter.to(dtype), parameter.grad.to(dtype)  # type: ignore[union-attr]
        state["step"] = state.get("step", 0) + 1
        (beta1, beta2, beta3), (eps1, eps2) = group["betas"], group["eps"]
        momentum = self._keeper.load("exp_avg", [state], [grad]).view(grad.shape)
        update = grad * inverse_root(state, "exp_avg_sq", grad.square() + eps1, beta2)
        update /= (update.square().mean().sqrt() / group["clip_threshold"]).clamp_min(1.0)
        rate: Tensor | float = group["lr"]
        if group["use_lr_mask"]:
            ratio = kept_numbers([state], "lr_ratio", grad, 1.0)
            flat = (grad.reshape(1, -1), momentum.view(1, -1))
            Mask.of(group).move(ratio, *flat, warming=state["step"] < group["warmup_steps"])
            rate = ratio.view(()) * rate
        momentum.lerp_(update, 1 - beta1)
        seed = state["step"] * 100_003 + index
        self._keeper.store("exp_avg", [state], momentum.view(1, -1), seed)
        direction = momentum.clone()
        if grad.ndim >= 2:
            direction *= inverse_root(state, "exp_avg_res", (update - momentum).square() + eps2, beta3)
        if group["use_cautious"]:
            rate = stages.cautious(direction.view(1, -1), grad.reshape(1, -1)).view(()) * rate
        if group["weight_decay"]:
            weight.mul_(1 - group["lr"] * group["weight_decay"])
        weight.sub_(direction * rate)
        write_back([parameter], weight.reshape(1, -1), seed if group["stochastic_rounding"] else None)
