"""Learning rates and schedules that do not act, or are 0 all along: said or rejected before a training, and told as it is in the LoRA's
metadata. No torch is needed, so the nodes ask too, when a prompt is queued.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from ..errors import UserError
from . import schedules

_FIXED_RATE = "--optimizer_args relative_step=False"


class Chosen(Protocol):
    """What matters here of an optimizer."""

    @property
    def sets_its_rate(self) -> bool: ...

    @property
    def schedule_free(self) -> bool: ...


@dataclass(frozen=True)
class Voided:
    """A setting without effect, and a sentence about it. rejected: nobody can have meant it."""

    setting: str
    text: str
    rejected: bool = False


def sets_its_rate(kind: str, arguments: Mapping[str, Any]) -> bool:
    """True for Adafactor with relative steps, which is its default; `warmup_init` turns them on too."""
    return kind.lower() == "adafactor" and bool(arguments.get("relative_step", True) or arguments.get("warmup_init", False))


def in_effect(args: Namespace, choice: Chosen) -> Namespace:
    """`args` with the rate and the schedule that act, in musubi-tuner's words for Adafactor. UserError where what is voided cannot be
    meant."""
    refused = [one.text for one in voided(args, choice) if one.rejected]
    if refused:
        raise UserError("\n".join(refused))
    if choice.sets_its_rate:
        name, _, first = args.lr_scheduler.partition(":")
        shown = first if name == "adafactor" and first else args.learning_rate
        return _with(args, learning_rate=None, lr_scheduler=f"adafactor:{shown}")
    if choice.schedule_free:
        return _with(args, lr_scheduler="constant", lr_scheduler_type="", lr_warmup_steps=0, lr_decay_steps=0)
    if args.lr_scheduler_type:
        return _with(args, lr_scheduler=args.lr_scheduler_type, lr_warmup_steps=0)
    return args


def voided(args: Namespace, choice: Chosen) -> Iterator[Voided]:
    """Each setting that is given and has no effect."""
    scheduler = args.lr_scheduler.partition(":")[0] not in ("constant", "adafactor")
    given = {"lr_scheduler": args.lr_scheduler} if scheduler else {}
    if choice.sets_its_rate:
        rate = f"--learning_rate {args.learning_rate} is only the first rate shown: Adafactor sets its own, unless {_FIXED_RATE} is given"
        yield Voided("learning_rate", rate)
        for name, value in given.items():
            yield Voided(name, f"--{name} {value} has no effect: Adafactor sets its own rate; choose constant, or add {_FIXED_RATE}")
        yield from _refused_by_adafactor(args)
        return
    given |= {"lr_warmup_steps": args.lr_warmup_steps} if args.lr_warmup_steps else {}
    if choice.schedule_free:
        given |= {"lr_scheduler_type": args.lr_scheduler_type} if args.lr_scheduler_type else {}
        why = "schedule-free optimizers keep their rate; their warm-up is --optimizer_args warmup_steps=..."
    elif args.lr_scheduler_type:
        why = f"--lr_scheduler_type {args.lr_scheduler_type} is used instead"
    else:
        return
    for name, value in given.items():
        yield Voided(name, f"--{name} {value} has no effect: {why}")


def check_schedule(args: Namespace, total: int) -> None:
    """UserError for a schedule that cannot be made for `total` steps; of ours, also where the rate is 0 in all of them."""
    ours = not args.lr_scheduler_type
    if ours and not args.learning_rate:
        raise UserError("--learning_rate is 0: nothing would be trained. 1e-4 to 2e-4 is usual for a LoRA")
    schedules.check(args, total)
    if not ours or args.lr_scheduler.startswith("adafactor"):
        return
    share = schedules.share_function(args, total, schedules.arguments(args))
    if not any(share(step) for step in range(total)):
        raise UserError(nothing_trained(args, total))


def nothing_trained(args: Namespace, total: int, which: str = "the learning rate is") -> str:
    """A sentence about a rate that is 0 all along."""
    schedule = f"--lr_scheduler {args.lr_scheduler} and --lr_warmup_steps {args.lr_warmup_steps}"
    return (
        f"{which} 0 in all {total} steps: with {f'--lr_scheduler_type {args.lr_scheduler_type}' if args.lr_scheduler_type else schedule} "
        "nothing would be trained. Train longer, shorten the warm-up or choose another schedule"
    )


def _refused_by_adafactor(args: Namespace) -> Iterator[Voided]:
    given = [(name, f"--{name}") for name in ("lr_scheduler_type", "lr_warmup_steps") if getattr(args, name)]
    pairs = [pair for pair in args.network_args or () if pair.partition("=")[0].strip() == "loraplus_lr_ratio"]
    for name, words in (*given, *(("network_args", pair) for pair in pairs)):
        text = f"{words} cannot act on Adafactor, which sets its own rate: leave it out, or add {_FIXED_RATE}"
        yield Voided(name, text, rejected=True)


def _with(args: Namespace, **changes: object) -> Namespace:
    return Namespace(**{**vars(args), **changes})
