"""HinaAdamW and AdaptiveHinaAdamW: AdamW in stages for LoRAs, cautious and with SPD unless told otherwise.

Names and settings are those of hinablue/sd-scripts; the rules are those of the papers. `legacy=True` has the rule of that program.
Settings that are None are as the chosen rule has them (`SOUND`, `legacy_*.DEFAULTS`).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from . import legacy_adaptive, legacy_hina, stages
from .adaptation import Mask, importance_of, rate_factors
from .pairing import DOWN, OTHER, UP, W2, Pair, by_name, discover, names_of, role
from .reports import Reports
from .rows import rows
from .staged import Alike, Bucket, Group, Staged

logger = logging.getLogger(__name__)

SOUND: dict[str, Any] = {
    "weight_decay": 0.0, "use_spd": True, "use_cautious": True, "use_orthogonal_grad": False, "use_adopt_stability": False,
    "use_grams": False, "use_agr": False, "use_tam": False, "tam_beta": 0.9, "dynamic_weight_decay": False, "alora_ratio": 1.0,
}  # fmt: skip
_NOT_SETTINGS = ("self", "params", "compile_step", "__class__")


class _Hina(Reports, Staged):
    """What both have in common: two rules, and the names of the weights."""

    def __init__(self, params: Any, given: dict[str, Any], old: Mapping[str, Any]) -> None:
        compile_step = given["compile_step"]
        settings = {name: value for name, value in given.items() if name not in _NOT_SETTINGS}
        settings = _resolved(settings, old if settings["legacy"] else SOUND)
        if settings["legacy"] and (settings["eight_bit"] or compile_step):
            raise ValueError("legacy is the rule of the program it comes from, which has no eight_bit and no compile_step: leave them out")
        self._roles: dict[int, str] = {}
        super().__init__(params, settings, compile_step=compile_step)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As PyTorch's; weights may be given with their names, or with kohya's list `named`."""
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        group.setdefault("first_rate", float(group["lr"]))
        for name, parameter in zip(names_of(group), group["params"], strict=False):
            self._roles[id(parameter)] = role(name)[1]

    def _step_group(self, group: Group) -> None:
        if self.param_groups[0]["legacy"]:
            self._legacy(group)
        else:
            super()._step_group(group)

    def _legacy(self, group: Group) -> None:
        raise NotImplementedError


class HinaAdamW(_Hina):
    """For LoRA and LoKr: knows by their names which matrices belong together.

    With `use_alora` the matrices that begin as 0 learn slower as they grow (ALLoRA), and `alora_ratio` times as fast as their partners
    (LoRA+), around the learning rate.
    """

    def __init__(
        self, params: Any, lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8,
        weight_decay: float | None = None, *, use_alora: bool = True, alora_ratio: float | None = None, alora_eta: float = 1.0,
        use_spd: bool | None = None, spd_lambda: float = 0.06, spd_anchor: str = "start", use_cautious: bool | None = None,
        use_orthogonal_grad: bool | None = None, use_adopt_stability: bool | None = None, use_grams: bool | None = None,
        use_agr: bool | None = None, use_tam: bool | None = None, tam_beta: float | None = None,
        dynamic_weight_decay: bool | None = None, wd_transition_steps: int = 1000, wd_decay_factor: float = 0.7,
        wd_min_ratio: float = 0.1, stochastic_rounding: bool = True, eight_bit: bool = False, compile_step: bool = False,
        legacy: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(params, dict(locals()), legacy_hina.DEFAULTS)

    def _legacy(self, group: Group) -> None:
        legacy_hina.update(group, self.state, names_of(group))

    def apart(self, group: Group, parameter: Tensor) -> tuple[Any, ...]:
        part = self._roles.get(id(parameter), OTHER)
        return (part, parameter.shape if part in (UP, W2) else None)  # of which ALLoRA looks at the rows

    def _part(self, bucket: Bucket) -> str:
        return self._roles.get(id(bucket.parameters[0]), OTHER)

    def scale(self, group: Group, bucket: Bucket, momenta: Tensor, grads: Tensor) -> None:
        part, ratio = self._part(bucket), group["alora_ratio"]
        if group["use_alora"] and ratio != 1 and part in (DOWN, UP):
            factor = ratio**0.5 if part == UP else ratio**-0.5
            bucket.scales.append(bucket.weights.new_full((), factor))

    def direct(self, group: Group, bucket: Bucket, updates: Tensor) -> None:
        if group["use_alora"] and self._part(bucket) in (UP, W2):
            stages.allora(updates, bucket.weights, bucket.parameters[0].shape, group["alora_eta"])


class AdaptiveHinaAdamW(_Hina):
    """For any network: each tensor's learning rate follows its importance, and during a warm-up how steady its gradients are."""

    def __init__(
        self, params: Any, lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8,
        weight_decay: float | None = None, *, use_dynamic_adaptation: bool = True, adaptation_strength: float = 1.0,
        relationship_discovery_interval: int = 100, importance_decay: float = 0.95, compatibility_threshold: float = 0.3,
        use_lr_mask: bool = True, lr_bump: float = 3e-6, min_lr: float = 1e-7, max_lr: float = 1e-3, warmup_steps: int = 500,
        use_spd: bool | None = None, spd_lambda: float = 0.06, spd_anchor: str = "start", use_cautious: bool | None = None,
        use_orthogonal_grad: bool | None = None, use_adopt_stability: bool | None = None, use_grams: bool | None = None,
        use_agr: bool | None = None, use_tam: bool | None = None, tam_beta: float | None = None,
        dynamic_weight_decay: bool | None = None, wd_transition_steps: int = 1000, wd_decay_factor: float = 0.7,
        wd_min_ratio: float = 0.1, stochastic_rounding: bool = True, eight_bit: bool = False, compile_step: bool = False,
        legacy: bool = False,
    ) -> None:  # fmt: skip
        if min_lr > max_lr:
            raise ValueError(f"min_lr {min_lr} is above max_lr {max_lr}")
        super().__init__(params, dict(locals()), legacy_adaptive.DEFAULTS)
        if use_lr_mask and any(group["first_rate"] > max_lr for group in self.param_groups):
            what = "the mask lowers the rate to max_lr" if legacy else "the mask does not raise the rate"
            logger.warning("max_lr %g is below the learning rate, so %s; give a higher max_lr", max_lr, what)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        super().add_param_group(param_group)
        self.param_groups[-1].setdefault("pairs", {"found": []})

    def _legacy(self, group: Group) -> None:
        legacy_adaptive.update(group, self.state, self.defaults["lr"])

    def before(self, group: Group, found: list[Alike]) -> None:
        if not group["use_dynamic_adaptation"]:
            return
        due = [alike for alike in found if alike.step % group["relationship_discovery_interval"] == 0]
        if due:
            self._refresh(group, due)

    def pairs(self, group: Group) -> list[Pair]:
        """The weights of a group that belong together, by position: by name at once, by shape as found at the last interval."""
        return by_name(names_of(group)) or [Pair(*pair) for pair in group["pairs"]["found"]]

    def _refresh(self, group: Group, due: list[Alike]) -> None:
        if not by_name(names_of(group)):
            found = discover(names_of(group), group["params"], group["compatibility_threshold"])
            group["pairs"] = {"found": [(pair.first, pair.second, pair.compatibility, pair.kind) for pair in found]}
        for alike in due:
            references, weights = alike.numbers("reference"), rows(alike.parameters)
            momenta = self._keeper.load("exp_avg", alike.states, alike.parameters)
            squares = self._keeper.load("exp_avg_sq", alike.states, alike.parameters)
            values = importance_of(weights, momenta, squares, references)
            alike.numbers("importance", 0.5).lerp_(values, 1 - group["importance_decay"])
            references.copy_(stages.norms(weights))
        self._spread(group)

    def _spread(self, group: Group) -> None:
        """The factors of all tensors of a group from their importance."""
        places = {index: weight for index, weight in enumerate(group["params"]) if "importance" in self.state.get(weight, {})}
        order = {index: place for place, index in enumerate(places)}
        home = next(iter(places.values())).device
        importance = torch.stack([self.state[weight]["importance"].float().to(home) for weight in places.values()])
        pairs = [
            Pair(order[pair.first], order[pair.second], pair.compatibility, pair.kind)
            for pair in self.pairs(group)
            if pair.first in order and pair.second in order
        ]
        factors = rate_factors(importance, pairs, group["adaptation_strength"])
        for weight, factor in zip(places.values(), factors.unbind(), strict=True):
            state = self.state[weight]
            state["factor"] = factor.to(state["importance"])

    def scale(self, group: Group, bucket: Bucket, momenta: Tensor, grads: Tensor) -> None:
        if group["use_lr_mask"]:
            ratios = bucket.numbers("lr_ratio", 1.0)
            Mask.of(group).move(ratios, grads, momenta, warming=bucket.step < group["warmup_steps"], scratch=bucket.scratch)
            bucket.scales.append(ratios)
        if group["use_dynamic_adaptation"]:
            if "importance" not in bucket.states[0]:
                bucket.numbers("importance", 0.5), bucket.numbers("reference")
            bucket.scales.append(bucket.numbers("factor", 1.0))


def _resolved(given: dict[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Settings without None. What was asked for switches off the default that contradicts it."""
    settings = {name: defaults[name] if value is None else value for name, value in given.items()}
    if not settings["legacy"]:
        if given["use_cautious"] is None and settings["use_grams"]:
            settings["use_cautious"] = False
        if given["use_spd"] is None and settings["weight_decay"]:
            settings["use_spd"] = False
    return settings
