"""The optimizer chosen by `--optimizer_type`: one of the table (`optimizers/`), any class of torch.optim or bitsandbytes, or any dotted
class path."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import UserError
from ..optimizers import registry
from ..optimizers.entry import Entry
from ..suggest import did_you_mean
from .classes import check_arguments, find_class, keyword_arguments, words
from .lean_torch import lean_adamw
from .settings import OptimizerSettings
from .voided import keeps_its_rate, sets_its_rate

if TYPE_CHECKING:
    from torch.optim import Optimizer

logger = logging.getLogger(__name__)

_COMMON = ("AdamW", "AdamW8bit", "Adafactor")
_GIVEN = ("params", "lr", "defaults")  # not the user's to set


@dataclass(frozen=True)
class Choice:
    """A built optimizer and what the metadata and the loop must know about it.

    name: class path as musubi-tuner records it; arguments: "key=value,..." of what was given; sets_its_rate: by relative steps, so that
    no rate and no schedule acts on it; train, eval: to be called around saving and sampling (schedule-free optimizers keep two sets of
    weights).
    """

    optimizer: Optimizer
    name: str
    arguments: str
    schedule_free: bool
    sets_its_rate: bool
    train: Callable[[], None]
    eval: Callable[[], None]

    @property
    def recorded(self) -> str:
        """Value of ss_optimizer."""
        return f"{self.name}({self.arguments})" if self.arguments else self.name


@dataclass(frozen=True)
class _Recipe:
    """The class that `--optimizer_type` names, its arguments, and whether it chooses its own rate; `names`: it wants the weights' names;
    `several_groups`: it takes groups with different rates."""

    make: Any
    arguments: dict[str, Any]
    sets_its_rate: bool = False
    schedule_free: bool = False
    names: bool = False
    several_groups: bool = True


def check(settings: OptimizerSettings) -> None:
    """Reject an optimizer that cannot be made: unknown, its package missing, arguments it does not have. Imports its package."""
    _recipe(settings)


def build(settings: OptimizerSettings, rate: float, groups: list[dict[str, Any]], names: Mapping[int, str] | None = None) -> Choice:
    """Make the optimizer for parameter groups that carry their own rates. rate: that of groups without one; names: of the weights, by
    their id, for optimizers that pair a LoRA's matrices.

    UserError for unknown names and arguments.
    """
    recipe = _recipe(settings)
    make = recipe.make
    if len(groups) > 1 and not recipe.several_groups:
        raise UserError(f"--optimizer_type {settings.optimizer_type} takes all weights with one rate: leave loraplus_lr_ratio out")
    if recipe.names and names:
        groups = [{**group, "params": [(names[id(weight)], weight) for weight in group["params"]]} for group in groups]
    own_rate = {} if recipe.sets_its_rate else {"lr": rate}
    try:
        optimizer = make(groups, **own_rate, **_fast(make, groups, recipe.arguments))
    except Exception as error:  # of any library's class
        raise UserError(f"--optimizer_type {settings.optimizer_type} cannot be made with these settings: {words(error)}") from error
    return Choice(
        optimizer,
        f"{make.__module__}.{make.__name__}",
        ",".join(f"{key}={value}" for key, value in recipe.arguments.items()),
        schedule_free=recipe.schedule_free,
        sets_its_rate=recipe.sets_its_rate,
        train=getattr(optimizer, "train", None) or _nothing,
        eval=getattr(optimizer, "eval", None) or _nothing,
    )


def _recipe(settings: OptimizerSettings) -> _Recipe:
    kind = settings.optimizer_type
    if not kind:
        raise UserError(f"--optimizer_type is not set; common choices: {', '.join(_COMMON)}")
    arguments = keyword_arguments(settings.optimizer_args, "--optimizer_args")
    if "lr" in arguments:
        raise UserError("--optimizer_args lr: the learning rate is --learning_rate")
    entry = registry.find(kind)
    if entry is None:
        make = _eight_bit(kind) if _is_eight_bit(kind) else _by_name(kind)
        recipe = _Recipe(make, arguments, schedule_free=keeps_its_rate(kind, arguments))
    else:
        recipe = _of_entry(entry, kind, arguments)
    check_arguments(recipe.make, recipe.arguments, "--optimizer_args", kind, _GIVEN)
    return recipe


def _of_entry(entry: Entry, kind: str, arguments: dict[str, Any]) -> _Recipe:
    registry.check_values(entry, arguments)
    if entry.name == "Adafactor":
        return _adafactor(arguments)
    make = lean_adamw() if entry.name == "AdamW" else _load(entry, kind)
    free = keeps_its_rate(kind, arguments)
    return _Recipe(make, {**entry.fixed, **arguments}, schedule_free=free, names=entry.names, several_groups=entry.several_groups)


def _load(entry: Entry, kind: str) -> Any:
    """The class of an entry, imported now. UserError where its package is missing or too old to have it."""
    module, _, name = entry.where.partition(":")
    try:
        found = importlib.import_module(module, registry.__package__)
    except ImportError as error:
        if not entry.needs:
            raise
        raise UserError(
            f"--optimizer_type {kind} needs the package {entry.needs}, which cannot be imported in the backend's environment ({error}); "
            f"run install.py --with {entry.extra}, or use AdamW"
        ) from None
    make = getattr(found, name, None)
    if make is None:
        raise UserError(f"--optimizer_type {kind}: the installed {entry.needs or module} has no {name}; update it, or use AdamW")
    return make


def _nothing() -> None:
    """Optimizers with one set of weights have no modes."""


def _fast(make: Any, groups: list[dict[str, Any]], arguments: dict[str, Any]) -> dict[str, Any]:
    """Ask torch's AdamW for its single-kernel step: LoRAs are hundreds of small tensors, where launches cost more than arithmetic.

    The arithmetic per element is the same as the plain loop's.
    """
    theirs = {"fused", "foreach", "capturable", "differentiable", "amsgrad"} & set(arguments)
    if f"{make.__module__}.{make.__name__}" != "torch.optim.adamw.AdamW" or theirs:
        return arguments
    first = next(iter(groups[0]["params"]))
    return {**arguments, "fused": first.device.type in ("cuda", "cpu")}


def _is_eight_bit(kind: str) -> bool:
    return kind.lower().endswith("8bit") and "." not in kind


def _eight_bit(kind: str) -> Any:
    try:
        import bitsandbytes
    except ImportError:
        raise UserError(
            f"--optimizer_type {kind} needs the package bitsandbytes, which is not installed in the backend's environment; run "
            "install.py --with optimizers, or use AdamW"
        ) from None
    named = {key.lower(): value for key, value in vars(bitsandbytes.optim).items() if isinstance(value, type)}
    if kind.lower() not in named:
        raise UserError(
            f"--optimizer_type {kind}: bitsandbytes has no such optimizer{did_you_mean(kind, [v.__name__ for v in named.values()])}"
        )
    return named[kind.lower()]


def _adafactor(arguments: dict[str, Any]) -> _Recipe:
    """transformers' Adafactor, whose steps are relative unless set otherwise."""
    from transformers.optimization import Adafactor

    relative = sets_its_rate("adafactor", arguments)
    if relative and not arguments.setdefault("relative_step", True):
        logger.info("set relative_step to True because warmup_init is True")
        arguments["relative_step"] = True
    return _Recipe(Adafactor, arguments, sets_its_rate=relative)


def _by_name(kind: str) -> Any:
    """A bare name of torch.optim or a dotted path of any installed library."""
    import torch

    if "." in kind:
        found = find_class(kind, "torch.optim", "--optimizer_type")
        if not isinstance(found, type):
            raise UserError(f"--optimizer_type {kind} is not a class; name an optimizer, such as torch.optim.AdamW")
        return found
    found = getattr(torch.optim, kind, None)
    if not (isinstance(found, type) and issubclass(found, torch.optim.Optimizer)):
        known = [name for name, value in vars(torch.optim).items() if isinstance(value, type) and issubclass(value, torch.optim.Optimizer)]
        raise registry.unknown(kind, tuple(known))
    return found
