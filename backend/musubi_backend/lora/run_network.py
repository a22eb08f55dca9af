"""The network of a run (LoRA, LoHa or LoKr), from `--network_module` and its companions."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import torch

from ..errors import UserError
from ..layers.experts import experts_of
from ..seeds import derived_seed
from ..suggest import did_you_mean
from .expert_networks import ExpertNetworks
from .merging import read_lora
from .network import LoRANetwork, kind_of, parse_network_args, ranks_from_weights
from .settings import NetworkSettings
from .shapes import LOHA, LOKR, LORA

if TYPE_CHECKING:
    from torch import nn

    from ..architectures.card import Card

Network = LoRANetwork | ExpertNetworks
logger = logging.getLogger(__name__)

_KINDS = {"networks.loha": LOHA, "networks.lokr": LOKR}


def check(settings: NetworkSettings, card: Card) -> None:
    """Reject a network that cannot be built, before anything is loaded."""
    module = settings.network_module or card.network_module
    known = (card.network_module, "networks.lora", *_KINDS)
    if module not in known:
        raise UserError(
            f"--network_module {module} is unknown{did_you_mean(module, known)}; for {card.title} use "
            f"{card.network_module}, networks.loha or networks.lokr"
        )
    kind = _KINDS.get(module, LORA)
    parse_network_args(settings.network_args, kind)
    if settings.network_dropout and kind != LORA:
        raise UserError(f"--network_dropout has nothing to act on in a {kind}; use --network_args rank_dropout=... or module_dropout=...")


def rates(settings: NetworkSettings, rate: float, card: Card) -> list[float]:
    """The base learning rate of each group of parameters that the network will have. rate: `--learning_rate`."""
    ratio = parse_network_args(settings.network_args, _KINDS.get(settings.network_module or card.network_module, LORA)).loraplus_lr_ratio
    return [rate] if ratio is None else [rate, rate * ratio]


def build(settings: NetworkSettings, card: Card, transformer: nn.Module, seed: int, device: torch.device) -> Network:
    """Attach a new LoRA to `transformer`, float32 on `device`, and load `--network_weights` into it. The first weights depend on the seed
    only. Two experts share one LoRA, unless `--lora_per_expert` asks for one each."""
    module = settings.network_module or card.network_module
    print(f"import network module: {module}", flush=True)
    models = experts_of(transformer)
    if settings.lora_per_expert:
        network: Network = ExpertNetworks({name: _attach(settings, card, model, seed, name) for name, model in models.items()})
    else:
        first, *others = models.values()
        shared = network = _attach(settings, card, first, seed)
        for other in others:
            shared.attach_to(other)
    logger.info("enable LoRA for U-Net: %d modules", len(network.targets))
    return network.to(device).train()


def _attach(settings: NetworkSettings, card: Card, model: nn.Module, seed: int, expert: str = "") -> LoRANetwork:
    module = settings.network_module or card.network_module
    kind = _KINDS.get(module, LORA)
    weights = read_lora(settings.network_weights, card.id) if settings.network_weights else None
    dora = next((key for key in weights or {} if key.endswith(".dora_scale")), None)
    if dora is not None:
        raise UserError(
            f"--network_weights {settings.network_weights} is a DoRA ({dora}), which cannot be trained on; give it as --base_weights to "
            "train a LoRA on top of it"
        )
    if weights is not None and kind_of(weights) != kind:
        raise UserError(
            f"--network_weights {settings.network_weights} is a {kind_of(weights)}, and --network_module {module} trains a {kind}"
        )
    ranks = ranks_from_weights(weights) if weights is not None and settings.dim_from_weights else None
    torch.manual_seed(derived_seed(seed, "network", *([expert] if expert else [])))
    logger.info("create %s network. base dim (rank): %s, alpha: %s", kind, settings.network_dim or 4, settings.network_alpha)
    size = (settings.network_dim, settings.network_alpha, settings.network_dropout)
    network = LoRANetwork.create(model, card, *size, settings.network_args, ranks, kind)
    if weights is not None:
        try:
            network.load_weights(weights)
        except UserError as error:
            raise UserError(f"--network_weights {settings.network_weights}: {error}") from error
        print(f"load network weights from {settings.network_weights}", flush=True)
    return network
