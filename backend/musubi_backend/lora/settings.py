"""The options of the network that is trained."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ..options.settings import Settings


@dataclass(frozen=True)
class NetworkSettings(Settings):
    """The LoRA, LoHa or LoKr that is trained, and what it begins with."""

    network_module: str | None = None
    network_dim: int | None = None
    network_alpha: float = 1
    network_dropout: float | None = None
    network_args: tuple[str, ...] | None = None
    network_weights: str | None = None
    dim_from_weights: bool = False
    scale_weight_norms: float | None = None
    lora_per_expert: bool = False


def deciding(network_args: Iterable[str] | None) -> list[str]:
    """The lines of `--network_args` that decide what is trained: all but how much is said."""
    return [pair for pair in network_args or () if pair.partition("=")[0].strip() != "verbose"]
