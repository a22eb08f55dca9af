"""The optimizer chosen by `--optimizer_type`: AdamW, AdamW8bit, Adafactor, any class of torch.optim, or any dotted class path."""

from __future__ import annotations

import logging
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import UserError
from ..options.suggest import did_you_mean
from .classes import find_class, keyword_arguments
from .lean_torch import lean_adamw

if TYPE_CHECKING:
    from torch.optim import Optimizer

logger = logging.getLogger(__name__)

_NAMED = ("AdamW", "AdamW8bit", "Adafactor")


@dataclass(frozen=True)
class Choice:
    """A built optimizer and what the metadata and the loop must know about it.

    name: class path as musubi-tuner records it; arguments: "key=value,..." of what was given; train, eval: to be called around
    saving and sampling (schedule-free optimizers keep two sets of weights).
    """

    optimizer: Optimizer
    name: str
    arguments: str
    schedule_free: bool
    train: Callable[[], None]
    eval: Callable[[], None]

    @property
    def recorded(self) -> str:
        """Value of ss_optimizer."""
        return f"{self.name}({self.arguments})" if self.arguments else self.name


def check(args: Namespace) -> None:
    """Refuse an optimizer that cannot be made before anything heavy is loaded: unknown, or its package is missing."""
    kind = args.optimizer_type
    if not kind:
        raise UserError(f"--optimizer_type is not set; common choices: {', '.join(_NAMED)}")
    keyword_arguments(args.optimizer_args, "--optimizer_args")
    if _is_eight_bit(kind):
        _eight_bit(kind)
    elif kind.lower() not in ("adamw", "adafactor"):
        _by_name(kind)


def build(args: Namespace, groups: list[dict[str, Any]]) -> Choice:
    """Make the optimizer for parameter groups that carry their own rates.

    A relative-step Adafactor sets its own rate: then `args.learning_rate` becomes None and `args.lr_scheduler` "adafactor:<rate>",
    as the metadata of musubi-tuner shows. Raises UserError for unknown names and arguments.
    """
    check(args)
    kind = args.optimizer_type
    arguments = keyword_arguments(args.optimizer_args, "--optimizer_args")
    make: Any
    if kind.lower() == "adamw":
        make = lean_adamw()
        kind = "AdamW"
    elif _is_eight_bit(kind):
        make, kind = _eight_bit(kind), "8-bit " + kind[:-4]
    elif kind.lower() == "adafactor":
        make, kind = _adafactor(args, arguments), "Adafactor"
    else:
        make = _by_name(kind)
    recorded = ",".join(f"{key}={value}" for key, value in arguments.items())
    logger.info("use %s optimizer | %s", kind, arguments)
    try:
        optimizer = make(groups, lr=args.learning_rate, **_fast(make, groups, arguments))
    except (TypeError, ValueError) as error:
        raise UserError(f"--optimizer_type {args.optimizer_type} refused its --optimizer_args: {error}") from error
    return Choice(
        optimizer,
        f"{make.__module__}.{make.__name__}",
        recorded,
        schedule_free=args.optimizer_type.lower().endswith("schedulefree"),
        train=getattr(optimizer, "train", None) or _nothing,
        eval=getattr(optimizer, "eval", None) or _nothing,
    )


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
            f"--optimizer_type {kind} needs the package bitsandbytes, which is not installed in the backend's environment; use "
            "AdamW, or install bitsandbytes there"
        ) from None
    named = {key.lower(): value for key, value in vars(bitsandbytes.optim).items() if isinstance(value, type)}
    if kind.lower() not in named:
        raise UserError(
            f"--optimizer_type {kind}: bitsandbytes has no such optimizer{did_you_mean(kind, [v.__name__ for v in named.values()])}"
        )
    return named[kind.lower()]


def _adafactor(args: Namespace, arguments: dict[str, Any]) -> Any:
    arguments.setdefault("relative_step", True)
    if not arguments["relative_step"] and arguments.get("warmup_init", False):
        logger.info("set relative_step to True because warmup_init is True")
        arguments["relative_step"] = True
    if arguments["relative_step"]:
        if args.learning_rate:
            logger.warning(
                "Adafactor with relative_step chooses its rate; --learning_rate %s is only the first value shown",
                args.learning_rate,
            )
        args.lr_scheduler = f"adafactor:{args.learning_rate}"
        args.learning_rate = None
    else:
        if args.max_grad_norm:
            logger.warning("Adafactor clips by itself; consider --max_grad_norm 0")
        if args.lr_scheduler != "constant_with_warmup":
            logger.warning("Adafactor with a given rate works best with --lr_scheduler constant_with_warmup")
    from transformers.optimization import Adafactor

    return Adafactor


def _by_name(kind: str) -> Any:
    """A bare name of torch.optim or a dotted path of any installed library."""
    import torch

    if "." in kind:
        return find_class(kind, "torch.optim", "--optimizer_type")
    found = getattr(torch.optim, kind, None)
    if not (isinstance(found, type) and issubclass(found, torch.optim.Optimizer)):
        known = [name for name, value in vars(torch.optim).items() if isinstance(value, type) and issubclass(value, torch.optim.Optimizer)]
        raise UserError(
            f"--optimizer_type {kind} is unknown{did_you_mean(kind, [*known, *_NAMED])}; give {', '.join(_NAMED)}, a class of "
            "torch.optim, or package.module.Class"
        )
    return found
