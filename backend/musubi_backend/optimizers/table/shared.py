"""Arguments that many optimizers have, with the same meaning."""

from __future__ import annotations

from ..entry import Argument, flag, number

EPS_HELP = "Added below the fraction, so that nothing is divided by 0."
DECAY_HELP = "How much weights are pulled towards 0 in each step, times the learning rate."
ROUNDING = flag("stochastic_rounding", True, "Round bfloat16 weights by chance, so that small updates arrive.")
MAXIMIZE = flag("maximize", False, "Go up the loss instead of down.")
FOREACH = flag("foreach", None, "Take many tensors at once; None: where that is faster.")


def eps(default: float = 1e-8) -> Argument:
    return number("eps", default, 0, 1, EPS_HELP)


def decay(default: float = 0.0) -> Argument:
    return number("weight_decay", default, 0, 10, DECAY_HELP)
