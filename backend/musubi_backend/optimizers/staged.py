"""AdamW in stages: gradient (AGR, orthogonal), moments (Adam or ADOPT, torque), direction (cautious or GRAMS), rate of each tensor, decay
or projection (SPD), write-back. Every stage is off by itself and usable alone.

Moments and arithmetic are in fp32 for weights of fewer bits. Tensors are taken in buckets of one device, dtype, size and step number, each
a matrix of which they are the rows, and a step does not wait for the device.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from . import stages
from .exact_state import ExactState
from .moments import EightBit, Keeper, Whole
from .rounding import exact, write_back
from .rows import in_place, kept, kept_numbers, rows, zeros

Group = dict[str, Any]
_CLASHES = (
    ("use_cautious", "use_grams", "both choose the direction of the update"),
    ("use_adopt_stability", "use_tam", "ADOPT scales gradients before it averages them, so torque has nothing sound to act on"),
    ("use_adopt_stability", "use_grams", "the size of ADOPT's update is not Adam's"),
)


_MOST_ON_A_CPU = 1 << 19  # numbers in one bucket: as many as its caches hold
_MOST = 1 << 24  # elsewhere: what is computed on the way takes memory


@dataclass
class Alike:
    """Tensors of one kind, of which the states are alike too. step: 1, 2, ...; anchored: whether SPD has places to hold them at."""

    parameters: list[Tensor]
    states: list[dict[str, Any]]
    step: int
    anchored: bool

    def numbers(self, name: str, start: float = 0.0) -> Tensor:
        """One number for each tensor, [tensors, 1], kept in the states: what is written into it stays."""
        return kept_numbers(self.states, name, self.parameters[0], start)


@dataclass
class Bucket(Alike):
    """Those that are updated together. weights, grads, updates, scratch: [tensors, numbers], to compute with; what is in the last two comes
    and goes; scales: what each update is multiplied with, [tensors, 1]."""

    weights: Tensor
    grads: Tensor
    updates: Tensor
    scratch: Tensor
    scales: list[Tensor] = field(default_factory=list)

    @classmethod
    def of(cls, alike: Alike) -> Bucket:
        """In one piece of memory: when several large ones are given back in each step, a C library hands them to the system, which fills
        each page with zeros before it is written to again; that takes as long as the arithmetic."""
        weights, grads = alike.parameters, [parameter.grad for parameter in alike.parameters if parameter.grad is not None]
        copied = not in_place(weights), not in_place(grads)
        first = weights[0]
        places = list(first.new_empty((2 + sum(copied), len(weights), first.numel()), dtype=exact(first.dtype)))
        return cls(
            **vars(alike), updates=places.pop(), scratch=places.pop(), weights=rows(weights, places.pop() if copied[0] else None),
            grads=rows(grads, places.pop() if copied[1] else None),
        )  # fmt: skip

    def anchors(self) -> Tensor | None:
        return kept(self.states, "anchor").to(self.weights.dtype) if self.anchored else None


class Staged(ExactState):
    """The step. What the stages are is said by the settings of each group."""

    def __init__(self, params: Any, settings: dict[str, Any], *, compile_step: bool = False) -> None:
        """settings: of `StagedAdamW`, and what a subclass adds. ValueError where they contradict each other."""
        if not settings.get("legacy"):
            check_stages(settings)
        self._keeper: Keeper = EightBit() if settings["eight_bit"] else Whole()
        self._adam: Callable[..., Tensor] = torch.compile(stages.adam) if compile_step else stages.adam
        self._zeros: dict[Tensor, int] = {}  # weights that began as 0, which need no anchor; and how often they had been written to
        super().__init__(params, settings)

    def add_param_group(self, param_group: Group) -> None:
        """As PyTorch's. Looks at once which weights are 0, so that no step has to wait for that."""
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        if group["use_spd"] and group["spd_anchor"] == "start":
            self._zeros |= {parameter: parameter._version for parameter in zeros(group["params"])}

    def _step_group(self, group: Group) -> None:
        found = list(self._alike(group))
        self.before(group, found)
        for index, alike in enumerate(found):
            self._update(group, Bucket.of(alike), index)

    def before(self, group: Group, found: list[Alike]) -> None:
        """What a subclass does with all tensors of a group before they are updated."""

    def scale(self, group: Group, bucket: Bucket, momenta: Tensor, grads: Tensor) -> None:
        """Where a subclass adds to `bucket.scales`. momenta: before this step; grads: as the stages left them."""

    def direct(self, group: Group, bucket: Bucket, updates: Tensor) -> None:
        """Where a subclass changes updates, in place."""

    def _alike(self, group: Group) -> Iterator[Alike]:
        found: dict[Any, list[Tensor]] = {}
        for parameter in group["params"]:
            grad = parameter.grad
            if grad is None:
                continue
            if grad.is_sparse:
                raise ValueError("sparse gradients are not supported")
            state = self.state[parameter]
            if not state:
                state["step"] = 0
                if group["use_spd"] and group["spd_anchor"] == "start" and self._zeros.get(parameter) != parameter._version:
                    state["anchor"] = parameter.detach().clone()
            state["step"] += 1
            place = (parameter.device, parameter.dtype, parameter.numel())
            found.setdefault((*place, state["step"], "anchor" in state, *self.apart(group, parameter)), []).append(parameter)
        for (device, _, size, step, anchored, *_rest), alike in found.items():
            count = max(1, (_MOST_ON_A_CPU if device.type == "cpu" else _MOST) // max(1, size))
            for begin in range(0, len(alike), count):
                parameters = alike[begin : begin + count]
                yield Alike(parameters, [self.state[parameter] for parameter in parameters], step, anchored)

    def apart(self, group: Group, parameter: Tensor) -> tuple[Any, ...]:
        """What a subclass keeps apart in buckets of its own."""
        return ()

    def _update(self, group: Group, bucket: Bucket, index: int) -> None:
        grads, weights, step, rate = bucket.grads, bucket.weights, bucket.step, group["lr"]
        if group["use_agr"]:
            grads = stages.adaptive_gradients(grads)
        if group["use_orthogonal_grad"]:
            grads = stages.orthogonal_gradients(grads, weights)
        momenta = self._keeper.load("exp_avg", bucket.states, bucket.parameters)
        squares = self._keeper.load("exp_avg_sq", bucket.states, bucket.parameters)
        self.scale(group, bucket, momenta, grads)
        updates, factor = self._direction(group, bucket, momenta, squares, grads)
        seed = step * 100_003 + index
        self._keeper.store("exp_avg", bucket.states, momenta, 2 * seed)
        self._keeper.store("exp_avg_sq", bucket.states, squares, 2 * seed + 1)
        if updates is None:
            return
        if group["use_cautious"]:
            bucket.scales.append(stages.cautious(updates, grads, bucket.scratch))
        elif group["use_grams"]:
            stages.grams(updates, grads)
        self.direct(group, bucket, updates)
        scaled: float | Tensor = math.prod(bucket.scales) * (rate * factor) if bucket.scales else rate * factor
        if group["use_spd"]:
            stages.project(weights, bucket.anchors(), bucket.grads, updates, scaled, group["spd_lambda"], bucket.scratch)
        else:
            decay = rate * group["weight_decay"] * _decay_share(group, step)
            if decay:
                weights.mul_(1 - decay)
            stages.subtract(weights, updates, scaled)
        write_back(bucket.parameters, weights, seed if group["stochastic_rounding"] else None)

    def _direction(
        self, group: Group, bucket: Bucket, momenta: Tensor, squares: Tensor, grads: Tensor
    ) -> tuple[Tensor | None, float]:  # fmt: skip
        """What times the learning rate and the number with it is the update, None for none; the moments are updated in place."""
        (beta1, beta2), eps, step = group["betas"], group["eps"], bucket.step
        if group["use_adopt_stability"]:
            return stages.adopt(momenta, squares, grads, (beta1, beta2), eps, step), 1.0
        root = (1 - beta2**step) ** 0.5
        below, factor = eps if group["use_grams"] else eps * root, root / (1 - beta1**step)
        if not group["use_tam"] and self._adam is stages.adam and grads.device.type in ("cpu", "cuda"):
            return stages.fused_adam(momenta, squares, grads, (beta1, beta2), below / root, step, bucket.updates), 1.0
        turned = stages.torque(momenta, grads, bucket.numbers("torque"), group["tam_beta"]) if group["use_tam"] else grads
        if self._adam is stages.adam:
            return stages.adam(momenta, squares, grads, turned, (beta1, beta2), below), factor
        # compiled: as a tensor, as another number would be another program
        return self._adam(momenta, squares, grads, turned, (beta1, beta2), grads.new_full((), below)), factor


class StagedAdamW(Staged):
    """AdamW whose stages are switched on one by one; with none, AdamW (arXiv:1711.05101)."""

    def __init__(
        self, params: Any, lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8, weight_decay: float = 0.0, *,
        use_spd: bool = False, spd_lambda: float = 0.06, spd_anchor: str = "start", use_cautious: bool = False,
        use_orthogonal_grad: bool = False, use_adopt_stability: bool = False, use_grams: bool = False, use_agr: bool = False,
        use_tam: bool = False, tam_beta: float = 0.9, dynamic_weight_decay: bool = False, wd_transition_steps: int = 1000,
        wd_decay_factor: float = 0.7, wd_min_ratio: float = 0.1, stochastic_rounding: bool = True, eight_bit: bool = False,
        compile_step: bool = False,
    ) -> None:  # fmt: skip
        given = dict(locals())
        settings = {name: value for name, value in given.items() if name not in ("self", "params", "compile_step", "__class__")}
        super().__init__(params, settings, compile_step=compile_step)


def check_stages(settings: dict[str, Any]) -> None:
    """ValueError, in words, for stages that contradict each other."""
    for one, other, why in _CLASHES:
        if settings.get(one) and settings.get(other):
            raise ValueError(f"{one} and {other} contradict each other: {why}; leave one of them out")
    if settings.get("use_spd") and settings.get("weight_decay"):
        raise ValueError(
            "use_spd and weight_decay contradict each other: SPD decides where weights are pulled back, weight decay always pulls; "
            "leave one of them out (use_spd=False, or weight_decay=0)"
        )


def _decay_share(group: Group, step: int) -> float:
    if not group["dynamic_weight_decay"]:
        return 1.0
    return stages.dynamic_weight_decay(step, group["wd_transition_steps"], group["wd_decay_factor"], group["wd_min_ratio"])
