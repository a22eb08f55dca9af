"""What an optimizer or a schedule class leaves without effect: said before the training, and told as it is in the LoRA's metadata."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator
from typing import TYPE_CHECKING

from ..errors import UserError

if TYPE_CHECKING:
    from .optimizers import Choice

_FIXED_RATE = "--optimizer_args relative_step=False"


def in_effect(args: Namespace, choice: Choice) -> Namespace:
    """`args` with the rate and the schedule that act, in musubi-tuner's words for Adafactor. UserError where what is voided cannot be
    meant."""
    if choice.sets_its_rate:
        _check_free_of_rates(args)
        name, _, first = args.lr_scheduler.partition(":")
        shown = first if name == "adafactor" and first else args.learning_rate
        return _with(args, learning_rate=None, lr_scheduler=f"adafactor:{shown}")
    if choice.schedule_free:
        return _with(args, lr_scheduler="constant", lr_scheduler_type="", lr_warmup_steps=0, lr_decay_steps=0)
    if args.lr_scheduler_type:
        return _with(args, lr_scheduler=args.lr_scheduler_type, lr_warmup_steps=0)
    return args


def remarks(args: Namespace, choice: Choice) -> Iterator[str]:
    """A sentence for each setting that is given and has no effect."""
    schedule = [f"--lr_scheduler {args.lr_scheduler}"] if args.lr_scheduler.partition(":")[0] not in ("constant", "adafactor") else []
    if choice.sets_its_rate:
        yield f"--learning_rate {args.learning_rate} is only the first rate shown: Adafactor sets its own, unless {_FIXED_RATE} is given"
        yield from (f"{one} has no effect: Adafactor sets its own rate" for one in schedule)
    elif choice.schedule_free:
        others = [f"--{name} {value}" for name in ("lr_scheduler_type", "lr_warmup_steps") if (value := getattr(args, name))]
        for one in (*schedule, *others):
            yield f"{one} has no effect: schedule-free optimizers keep their rate; their warm-up is --optimizer_args warmup_steps=..."
    elif args.lr_scheduler_type:
        others = [f"--lr_warmup_steps {args.lr_warmup_steps}"] if args.lr_warmup_steps else []
        yield from (f"{one} has no effect: --lr_scheduler_type {args.lr_scheduler_type} is used instead" for one in (*schedule, *others))


def _check_free_of_rates(args: Namespace) -> None:
    given = [f"--{name}" for name in ("lr_scheduler_type", "lr_warmup_steps") if getattr(args, name)]
    given += [pair for pair in args.network_args or () if pair.partition("=")[0].strip() == "loraplus_lr_ratio"]
    if given:
        raise UserError(f"{' and '.join(given)} cannot act on Adafactor, which sets its own rate: leave it out, or add {_FIXED_RATE}")


def _with(args: Namespace, **changes: object) -> Namespace:
    return Namespace(**{**vars(args), **changes})
