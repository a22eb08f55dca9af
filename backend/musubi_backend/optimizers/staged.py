"""AdamW in stages: gradient (AGR, orthogonal), moments (Adam or ADOPT, torque), direction (cautious or GRAMS), rate of each tensor, decay
or projection (SPD), write-back. Every stage is off by itself and usable alone.

Moments and arithmetic are in fp32 for weights of fewer bits. Tensors are taken in buckets of one device, dtype and step number, and a
step does not wait for the device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from . import stages
from .exact_state import ExactState
from .moments import EightBit, Keeper, Whole
from .rounding import exact, write_back

Group = dict[str, Any]
_CLASHES = (
    ("use_cautious", "use_grams", "both choose the direction of the update"),
    ("use_adopt_stability", "use_tam", "ADOPT scales gradients before it averages them, so torque has nothing sound to act on"),
    ("use_adopt_stability", "use_grams", "the size of ADOPT's update is not Adam's"),
)


@dataclass
class Bucket:
    """Tensors that are updated together. weights: to compute with (the parameters, or fp32 copies); step: 1, 2, ...; anchored: whether SPD
    has places to hold them at; scales: what each update is multiplied with, [tensors]."""

    parameters: list[Tensor]
    weights: list[Tensor]
    grads: list[Tensor]
    states: list[dict[str, Any]]
    step: int
    anchored: bool
    scales: list[Tensor] = field(default_factory=list)

    def anchors(self) -> list[Tensor] | None:
        return [state["anchor"].to(self.weights[0].dtype) for state in self.states] if self.anchored else None


class Staged(ExactState):
    """The step. What the stages are is said by the settings of each group."""

    def __init__(self, params: Any, settings: dict[str, Any], *, compile_step: bool = False) -> None:
        """settings: of `StagedAdamW`, and what a subclass adds. ValueError where they contradict each other."""
        if not settings.get("legacy"):
            check_stages(settings)
        self._keeper: Keeper = EightBit() if settings["eight_bit"] else Whole()
        self._adam: Callable[..., list[Tensor]] = torch.compile(stages.adam) if compile_step else stages.adam
        super().__init__(params, settings)

    def _step_group(self, group: Group) -> None:
        buckets = list(self._buckets(group))
        self.before(group, buckets)
        for index, bucket in enumerate(buckets):
            self._update(group, bucket, index)

    def before(self, group: Group, buckets: list[Bucket]) -> None:
        """What a subclass does with all buckets of a group before they are updated."""

    def scale(self, group: Group, bucket: Bucket, momenta: list[Tensor], grads: list[Tensor]) -> None:
        """Where a subclass adds to `bucket.scales`. momenta: before this step; grads: as the stages left them."""

    def direct(self, group: Group, bucket: Bucket, updates: list[Tensor]) -> None:
        """Where a subclass changes updates, in place."""

    def _buckets(self, group: Group) -> Iterator[Bucket]:
        found: dict[Any, list[Tensor]] = {}
        for parameter in group["params"]:
            if parameter.grad is None:
                continue
            if parameter.grad.is_sparse:
                raise ValueError("sparse gradients are not supported")
            state = self.state[parameter]
            if not state:
                state["step"] = 0
                if group["use_spd"] and group["spd_anchor"] == "start" and bool(parameter.any()):
                    state["anchor"] = parameter.detach().clone()
            state["step"] += 1
            key = (parameter.device, parameter.dtype, state["step"], "anchor" in state, *self.apart(group, parameter))
            found.setdefault(key, []).append(parameter)
        for (_, dtype, step, anchored, *_rest), parameters in found.items():
            grads = [parameter.grad.to(exact(dtype)) for parameter in parameters if parameter.grad is not None]
            weights = [parameter.to(exact(dtype)) for parameter in parameters]
            yield Bucket(parameters, weights, grads, [self.state[parameter] for parameter in parameters], step, anchored)

    def apart(self, group: Group, parameter: Tensor) -> tuple[Any, ...]:
        """What a subclass keeps apart in buckets of its own."""
        return ()

    def _update(self, group: Group, bucket: Bucket, index: int) -> None:
        grads, weights, step, rate = bucket.grads, bucket.weights, bucket.step, group["lr"]
        if group["use_agr"]:
            grads = stages.adaptive_gradients(grads)
        if group["use_orthogonal_grad"]:
            grads = stages.orthogonal_gradients(grads, weights)
        momenta = self._keeper.load("exp_avg", bucket.states, grads)
        squares = self._keeper.load("exp_avg_sq", bucket.states, grads)
        self.scale(group, bucket, momenta, grads)
        updates = self._direction(group, bucket, momenta, squares, grads)
        seed = step * 1009 + index
        self._keeper.store("exp_avg", bucket.states, momenta, 2 * seed)
        self._keeper.store("exp_avg_sq", bucket.states, squares, 2 * seed + 1)
        if updates is None:
            return
        if group["use_cautious"]:
            bucket.scales.append(stages.cautious(updates, grads))
        elif group["use_grams"]:
            stages.grams(updates, grads)
        self.direct(group, bucket, updates)
        if bucket.scales:
            torch._foreach_mul_(updates, list((rate * torch.stack(bucket.scales).prod(0)).unbind()))
        else:
            torch._foreach_mul_(updates, rate)
        projection = stages.Projection(weights, bucket.anchors(), bucket.grads) if group["use_spd"] else None
        decay = rate * group["weight_decay"] * _decay_share(group, step)
        if decay:
            torch._foreach_mul_(weights, 1 - decay)
        torch._foreach_sub_(weights, updates)
        if projection is not None:
            projection.apply(weights, updates, group["spd_lambda"])
        if weights[0] is not bucket.parameters[0]:
            write_back(bucket.parameters, weights, seed if group["stochastic_rounding"] else None)

    def _direction(
        self, group: Group, bucket: Bucket, momenta: list[Tensor], squares: list[Tensor], grads: list[Tensor]
    ) -> list[Tensor] | None:
        """New tensors that times the learning rate are the update; the moments are updated in place. None for no update."""
        (beta1, beta2), eps, step = group["betas"], group["eps"], bucket.step
        if group["use_adopt_stability"]:
            return stages.adopt(momenta, squares, grads, (beta1, beta2), eps, step)
        turned = grads
        if group["use_tam"]:
            turned = stages.torque(momenta, grads, scalars(bucket, "torque"), group["tam_beta"])
        root = (1 - beta2**step) ** 0.5
        below, factor = eps if group["use_grams"] else eps * root, root / (1 - beta1**step)
        if self._adam is stages.adam:
            return stages.adam(momenta, squares, grads, turned, (beta1, beta2), below, factor)
        device = grads[0].device  # compiled: as tensors, as other numbers would be other programs
        numbers = torch.tensor([below, factor], dtype=grads[0].dtype).to(device, non_blocking=True)
        return list(self._adam(momenta, squares, grads, turned, (beta1, beta2), numbers[0], numbers[1]))


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


def scalars(bucket: Bucket, name: str, start: float = 0.0) -> list[Tensor]:
    """One number per tensor, kept in the states, on the device."""
    for state, grad in zip(bucket.states, bucket.grads, strict=True):
        if name not in state:
            state[name] = grad.new_full((), start)
    return [state[name] for state in bucket.states]
