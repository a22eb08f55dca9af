"""A LoRA on a loaded transformer, and another one for the next request: nothing is loaded again and no weight changes."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..architectures.card import HIGH
from ..documents import parse_json
from ..errors import UserError
from ..layers.experts import Experts, experts_of
from ..layers.linear import Linear
from ..weights.safetensors_file import read_header
from .merging import open_lora, read_lora
from .network import LoRANetwork, kind_of, ranks_from_weights
from .shapes import LOKR

if TYPE_CHECKING:
    from torch import nn

    from ..architectures.card import Card

logger = logging.getLogger(__name__)

_PARTS = ("lora_down.weight", "lora_up.weight", "hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "lokr_w1", "lokr_w2", "lokr_w2_a",
          "lokr_w2_b", "alpha")  # fmt: skip


def check(path: str | Path) -> None:
    """UserError for a file that is no LoRA. Reads its header."""
    if not Path(path).is_file():
        raise UserError(f"the LoRA {path} does not exist")
    open_lora(path).close()


class ChangingLoRA:
    """What is on a transformer now. It is added to what each layer computes, as in training, not merged: results differ from those of
    merged weights by the rounding of these."""

    def __init__(self, card: Card) -> None:
        self._card = card
        self._worn: dict[str, _Worn] = {}  # by the name of the expert

    def put_on(self, transformer: nn.Module, path: str | None, high_noise: str | None = None, strength: float = 1.0) -> None:
        """Take off what is on `transformer` and put on the LoRA `path`, if any; high_noise: on the high-noise expert of two. UserError for
        a LoRA that fits no layer, for kinds that can only be merged, and for models that do not stay loaded."""
        if not path and not high_noise and not self._worn:
            return
        if isinstance(transformer, Experts) and transformer.lazy:
            raise UserError("--lw goes with models that stay loaded: leave --lazy_loading out, or use --offload_inactive_dit")
        models = experts_of(transformer)
        if high_noise and HIGH not in models:
            raise UserError("--lwh is for the high-noise model, which is not there: give --dit_high_noise, or leave it out")
        for name, model in models.items():
            file, worn = high_noise if name == HIGH else path, self._worn.get(name)
            if not file:
                if worn is not None:
                    worn.network.detach_from(model)
                    del self._worn[name]
                continue
            if worn is None or worn.path != file:
                worn = self._worn[name] = _read(file, model, self._card, name, worn)
            worn.network.set_strength(strength)
            for module, place in worn.network.targets.items():
                linear = model.get_submodule(place)
                assert isinstance(linear, Linear)
                worn.network.get_submodule(module).to(linear.device)


@dataclass(frozen=True)
class _Worn:
    path: str
    network: LoRANetwork
    kind: str
    ranks: dict[str, tuple[int, float]]


def _read(path: str, model: nn.Module, card: Card, expert: str, before: _Worn | None) -> _Worn:
    """The network of a file on `model`; that of the one before where only the numbers differ, as between checkpoints of a training."""
    state = read_lora(path, card.id, expert)
    other = next((key for key in state if key.partition(".")[2] not in _PARTS), None)
    if other is not None:
        raise UserError(f"{path} holds {other}, which can only be merged: use --lora_weight")
    kind, ranks = kind_of(state), ranks_from_weights(state)
    logger.info("LoRA of this prompt: %s", path)
    try:
        if before is not None and (before.kind, before.ranks) == (kind, ranks):
            network = before.network
        else:
            if before is not None:
                before.network.detach_from(model)
            every = replace(card, lora_exclude="")  # the file says which layers it is for
            network = (
                LoRANetwork.create(model, every, network_args=_factor(path, kind), ranks=ranks, kind=kind).eval().requires_grad_(False)
            )
        network.load_weights(state)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    return _Worn(path, network, kind, ranks)


def _factor(path: str, kind: str) -> dict[str, str]:
    """What the metadata of a LoKr says about its halves; nothing for others, and where it says nothing."""
    if kind != LOKR:
        return {}
    try:
        said = parse_json(read_header(path).metadata.get("ss_network_args", "{}"), dict)
    except ValueError:
        return {}
    return {"factor": str(said["factor"])} if "factor" in said else {}
