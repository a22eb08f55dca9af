"""The network of a run (LoRA, LoHa or LoKr), from `--network_module` and its companions."""

from __future__ import annotations

import logging
from argparse import Namespace
from typing import TYPE_CHECKING

import torch

from ..errors import UserError
from ..layers.lora import LOHA, LOKR, LORA, LoRANetwork, kind_of, parse_network_args, ranks_from_weights
from ..layers.lora_files import read_lora
from ..options.suggest import did_you_mean
from .randomness import derived_seed

if TYPE_CHECKING:
    from torch import nn

    from ..architectures.card import Card

logger = logging.getLogger(__name__)

_KINDS = {"networks.loha": LOHA, "networks.lokr": LOKR}


def check(args: Namespace, card: Card) -> None:
    """Refuse a network that cannot be built, before anything is loaded."""
    module = args.network_module or card.network_module
    known = (card.network_module, "networks.lora", *_KINDS)
    if module not in known:
        raise UserError(
            f"--network_module {module} is not one of this program's{did_you_mean(module, known)}; for {card.title} use "
            f"{card.network_module}, networks.loha or networks.lokr"
        )
    kind = _KINDS.get(module, LORA)
    parse_network_args(args.network_args, kind)
    if args.network_dropout and kind != LORA:
        raise UserError(f"--network_dropout has nothing to act on in a {kind}; use --network_args rank_dropout=... or module_dropout=...")


def build(args: Namespace, card: Card, transformer: nn.Module, seed: int) -> LoRANetwork:
    """Attach a new LoRA to `transformer`, float32, and load `--network_weights` into it. The first weights depend on the seed only."""
    module = args.network_module or card.network_module
    print(f"import network module: {module}", flush=True)
    kind = _KINDS.get(module, LORA)
    weights = read_lora(args.network_weights, card.id) if args.network_weights else None
    if weights is not None and kind_of(weights) != kind:
        raise UserError(f"--network_weights {args.network_weights} is a {kind_of(weights)}, and --network_module {module} trains a {kind}")
    ranks = ranks_from_weights(weights) if weights is not None and args.dim_from_weights else None
    torch.manual_seed(derived_seed(seed, "network"))
    logger.info("create %s network. base dim (rank): %s, alpha: %s", kind, args.network_dim or 4, args.network_alpha)
    size = (args.network_dim, args.network_alpha, args.network_dropout)
    network = LoRANetwork.create(transformer, card, *size, args.network_args, ranks, kind)
    if weights is not None:
        network.load_weights(weights)
        print(f"load network weights from {args.network_weights}", flush=True)
    logger.info("enable LoRA for U-Net: %d modules", len(network.targets))
    return network.train()
