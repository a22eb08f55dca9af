"""Automagic, whose learning rate finds its own height from the signs of its updates; after ostris/ai-toolkit. Squares are Adafactor's.

What differs from that program: rates and averages are fp32; the schedule acts on top of what is found; the rate of the third version
has bounds, and its step is one of all weights after the backward pass, so that accumulating and clipping gradients work.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .exact_state import ExactState
from .factored import inverse_root
from .rounding import exact, write_back

_NOT_SETTINGS = ("self", "params", "__class__")
_FULL = 8  # signs that are remembered of each weight


class _Automagic(ExactState):
    def __init__(self, params: Any, given: dict[str, Any]) -> None:
        if given["min_lr"] > given["max_lr"]:
            raise ValueError(f"min_lr {given['min_lr']} is above max_lr {given['max_lr']}")
        super().__init__(params, {name: value for name, value in given.items() if name not in _NOT_SETTINGS})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        super().add_param_group(param_group)
        self.param_groups[-1].setdefault("first_rate", float(self.param_groups[-1]["lr"]))

    def _direction(self, group: dict[str, Any], parameter: Tensor) -> Tensor:
        """Of fp32 at least, with a root mean square of `clip_threshold` at most."""
        state, grad = self.state[parameter], parameter.grad.to(exact(parameter.dtype))  # type: ignore[union-attr]
        state["step"] = state.get("step", 0) + 1
        update: Tensor = grad * inverse_root(state, "exp_avg_sq", grad.square() + group["eps"], group["beta2"])
        update /= (update.square().mean().sqrt() / group["clip_threshold"]).clamp_min(1.0)
        return update

    def _apply(self, group: dict[str, Any], parameter: Tensor, update: Tensor, rate: Tensor, index: int) -> None:
        """rate: of each weight, or of all."""
        weight = parameter.to(update.dtype)
        weight.sub_((update + weight * group["weight_decay"]) * rate)
        if weight is not parameter:
            step = self.state[parameter]["step"]
            write_back([parameter], weight.reshape(1, -1), step * 100_003 + index if group["stochastic_rounding"] else None)


class Automagic(_Automagic):
    """The first version: a rate for each weight, which rises by `lr_bump` while its update keeps its sign, and falls when that turns."""

    def __init__(
        self, params: Any, lr: float = 1e-6, min_lr: float = 1e-7, max_lr: float = 1e-3, lr_bump: float = 1e-6,
        eps: float = 1e-30, clip_threshold: float = 1.0, beta2: float = 0.999, weight_decay: float = 0.0,
        stochastic_rounding: bool = True,
    ) -> None:  # fmt: skip
        super().__init__(params, dict(locals()))

    def _step_group(self, group: dict[str, Any]) -> None:
        for index, parameter in enumerate(group["params"]):
            if parameter.grad is None:
                continue
            state, update = self.state[parameter], self._direction(group, parameter)
            first = _first_rate(group)
            if "rates" not in state:
                state["rates"] = torch.full_like(update, first)
                state["polarity"] = torch.zeros_like(update, dtype=torch.bool)
            rising = update > 0
            bump = (rising == state["polarity"]).to(update.dtype).mul_(2).sub_(1).mul_(group["lr_bump"])
            state["rates"].add_(bump).clamp_(group["min_lr"], group["max_lr"])
            state["polarity"] = rising
            self._apply(group, parameter, update, state["rates"] * (group["lr"] / first if first else 1.0), index)


class Automagic3(_Automagic):
    """The third version: one rate for each group. Weights whose last `polarity_history` updates all had one sign vote for a higher rate,
    those whose sign turned each time for a lower one, by the size of their update."""

    def __init__(
        self, params: Any, lr: float = 1e-6, min_lr: float = 1e-8, max_lr: float = 1e-2, polarity_history: int = 4, eps: float = 1e-30,
        clip_threshold: float = 1.0, beta2: float = 0.999, weight_decay: float = 0.0, stochastic_rounding: bool = True,
    ) -> None:  # fmt: skip
        if not 2 <= polarity_history <= _FULL:
            raise ValueError(f"polarity_history {polarity_history} is not from 2 to {_FULL}")
        super().__init__(params, dict(locals()))

    def _step_group(self, group: dict[str, Any]) -> None:
        learning = [(index, weight) for index, weight in enumerate(group["params"]) if weight.grad is not None]
        if not learning:
            return
        shared, first = self.state[group["params"][0]], _first_rate(group)
        home = group["params"][0].device
        level = shared.setdefault("log_rate", torch.zeros((), device=home))
        votes, sizes = [], []
        for index, parameter in learning:
            update = self._direction(group, parameter).clamp_(-group["clip_threshold"], group["clip_threshold"])
            vote, size = self._vote(self.state[parameter], update, group["polarity_history"])
            votes.append(vote.to(home))
            sizes.append(size.to(home))
            self._apply(group, parameter, update, group["lr"] * level.exp().to(update), index)
        level += torch.stack(votes).sum() / torch.stack(sizes).sum().clamp_min(1e-30)
        if first:
            level.clamp_(min(0.0, _log(group["min_lr"] / first)), max(0.0, _log(group["max_lr"] / first)))

    def _vote(self, state: dict[str, Any], update: Tensor, length: int) -> tuple[Tensor, Tensor]:
        """Sizes of updates that vote, up less down, and of all."""
        mask = (1 << length) - 1
        signs = state.setdefault("signs", torch.zeros_like(update, dtype=torch.uint8))
        signs.bitwise_left_shift_(1).bitwise_or_(update > 0).bitwise_and_(mask)
        size = update.abs()
        if state["step"] < length:
            return size.new_zeros(()), size.sum()
        turning = 0b01010101 & mask
        up, down = (signs == 0) | (signs == mask), (signs == turning) | (signs == mask - turning)
        return (size * (up.to(size.dtype) - down.to(size.dtype))).sum(), size.sum()


def _first_rate(group: dict[str, Any]) -> float:
    """The rate of a group without its schedule."""
    return float(group["initial_lr"] if "initial_lr" in group else group["first_rate"])


def _log(value: float) -> float:
    return math.log(max(value, 1e-30))
