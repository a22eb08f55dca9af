"""What is trained and what trains it, on its device: made when a training begins, and anew when its settings step down."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .. import job
from ..layers.blocks import KeptAttention
from ..lora import run_network
from . import optimizers, schedules
from .voided import Acting, in_effect

if TYPE_CHECKING:
    import torch
    from torch import nn

    from ..architectures.protocol import Architecture
    from ..lora.run_network import Network
    from .optimizers import Choice
    from .schedules import Schedule
    from .settings import TrainingSettings

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Built:
    """The frozen transformer with its LoRA, the optimizer and its schedule. acting: the settings as they are in effect."""

    transformer: nn.Module
    network: Network
    choice: Choice
    schedule: Schedule
    acting: Acting


def build(settings: TrainingSettings, architecture: Architecture, device: torch.device, dtype: torch.dtype, seed: int, total: int) -> Built:
    """From the weight file. dtype: of the arithmetic; seed: of the LoRA's first weights; total: how many steps the schedule is for."""
    logger.info("Loading DiT model from %s", settings.models.dit)
    job.phase("loading the transformer")
    transformer = architecture.transformer(device, dtype).requires_grad_(False)
    network = run_network.build(settings.network, architecture.card, transformer, seed, device)
    if settings.memory.gradient_checkpointing:
        memory, offload = settings.memory, settings.memory.gradient_checkpointing_cpu_offload
        switches: Any = transformer
        switches.gradient_checkpointing, switches.gradient_checkpointing_cpu_offload = True, offload
        switches.kept_attention = KeptAttention(memory.keep_attention_blocks, memory.offload_attention_blocks)
        print(f"gradient checkpointing enabled. Activation CPU offloading: {offload}", flush=True)
    print("prepare optimizer, data loader etc.", flush=True)
    job.phase("preparing the optimizer")
    rate = settings.schedule.learning_rate
    names = {id(weight): name for name, weight in network.named_parameters()}
    choice = optimizers.build(settings.optimizer, rate, network.parameter_groups(rate), names)
    acting = in_effect(settings, choice)
    return Built(transformer, network, choice, schedules.build(acting.schedule, choice.optimizer, total, choice.schedule_free), acting)
