"""LoRA-RITE (arXiv:2410.20625) of pytorch_optimizer, which takes weights in turns: down, up, down, up."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pytorch_optimizer import LoRARite
from torch.optim import Optimizer

from .pairing import DOWN, by_name, role


def lora_rite(
    params: Iterable[Mapping[str, Any]], lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-6,
    clip_unmagnified_grad: float = 1.0, weight_decay: float = 0.0, balance_param: bool = False,
) -> Optimizer:  # fmt: skip
    """params: groups of (name, weight); without names they are taken to be in turns. ValueError for a weight that is no part of a pair."""
    optimizer: Optimizer = LoRARite(
        [{**group, "params": _in_turns(list(group["params"]))} for group in params], lr=lr, betas=betas, eps=eps,
        clip_unmagnified_grad=clip_unmagnified_grad, weight_decay=weight_decay, balance_param=balance_param,
    )  # fmt: skip
    return optimizer


def _in_turns(weights: list[Any]) -> list[Any]:
    if not weights or not isinstance(weights[0], tuple):
        return weights
    names = [name for name, _ in weights]
    order = [place for pair in by_name(names) if role(names[pair.first])[1] == DOWN for place in (pair.first, pair.second)]
    alone = set(range(len(names))) - set(order)
    if alone:
        raise ValueError(f"it trains pairs of a LoRA's matrices only, and {names[min(alone)]} is in none; use AdamW, or a plain LoRA")
    return [weights[place] for place in order]
