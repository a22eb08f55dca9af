"""What a LoRA file says about itself: kohya's ss_* keys, the ModelSpec block and the additional-networks hashes.

Every value is text. Names and rules are musubi-tuner's; ModelSpec: github.com/Stability-AI/ModelSpec.
"""

from __future__ import annotations

import datetime
import json
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UserError
from .settings import TrainingSettings
from .voided import Acting

if TYPE_CHECKING:
    from ..architectures.card import Card

KEPT_WITHOUT_METADATA = ("ss_base_model_version", "ss_network_module", "ss_network_dim", "ss_network_alpha", "ss_network_args")
DEFAULT_RESOLUTION = "1280x720"  # musubi-tuner's placeholder for video models; buckets hold the real sizes

# keys whose value is the setting of the same name
_FROM_SETTINGS = (
    "output_name", "gradient_checkpointing", "gradient_checkpointing_cpu_offload", "gradient_accumulation_steps",
    "max_train_steps", "network_module", "network_dim", "network_alpha", "network_dropout",
    "mixed_precision", "seed", "training_comment", "max_grad_norm", "weighting_scheme", "logit_mean", "logit_std", "mode_scale",
    "guidance_scale", "timestep_sampling", "sigmoid_scale", "discrete_flow_shift",
)  # fmt: skip


@dataclass(frozen=True)
class RunFacts:
    """What the metadata needs beyond the settings."""

    items: int
    batches_per_epoch: int
    epochs: int
    optimizer: str
    acting: Acting
    datasets: list[dict[str, Any]]
    held_out: int = 0


def training_metadata(settings: TrainingSettings, card: Card, facts: RunFacts) -> dict[str, str]:
    """The keys that stay the same during one run. Call it at the start: it holds the starting time."""
    given = settings.values()
    values: dict[str, Any] = {f"ss_{name}": given[name] for name in _FROM_SETTINGS}
    values |= {
        "ss_learning_rate": facts.acting.learning_rate,
        "ss_lr_scheduler": facts.acting.schedule.lr_scheduler,
        "ss_lr_warmup_steps": facts.acting.schedule.lr_warmup_steps,
        "ss_session_id": random.SystemRandom().randrange(2**32),
        "ss_training_started_at": time.time(),
        "ss_num_train_items": facts.items,
        "ss_num_batches_per_epoch": facts.batches_per_epoch,
        "ss_num_epochs": facts.epochs,
        "ss_base_model_version": card.name,
        "ss_optimizer": facts.optimizer,
        "ss_fp8_base": settings.memory.fp8_base,
        "ss_full_fp16": False,
        "ss_full_bf16": False,
        "ss_datasets": json.dumps(facts.datasets),
    }
    if facts.held_out:  # under sd-scripts' names
        values |= {
            "ss_num_validation_images": facts.held_out,
            **{f"ss_{name}": value for name, value in settings.validation.values().items()},
        }
    if settings.network.network_args:
        values["ss_network_args"] = json.dumps(dict(pair.split("=", 1) for pair in settings.network.network_args))
    if settings.models.dit:
        values["ss_sd_model_name"] = Path(settings.models.dit).name
    if settings.models.vae:
        values["ss_vae_name"] = Path(settings.models.vae).name
    return {key: str(value) for key, value in values.items()}


def file_metadata(
    run: Mapping[str, str], settings: TrainingSettings, card: Card, step: int, epoch: int, expert: str = ""
) -> dict[str, str]:
    """The metadata of one saved file, without hashes. epoch: as musubi-tuner counts it (see `checkpoints`). expert: the one of two
    that the file is for, if it is for one only."""
    if settings.metadata.no_metadata:
        values = {key: run[key] for key in KEPT_WITHOUT_METADATA if key in run}
    else:
        values = {**run, "ss_training_finished_at": str(time.time()), "ss_steps": str(step), "ss_epoch": str(epoch)}
    return {**values, **({"ss_expert": expert} if expert else {}), **_model_spec(settings, card, expert)}


def resolution(text: str | None) -> str:
    """`--metadata_reso` "W,H" or "S" -> "WxH". Raises UserError."""
    if text is None:
        return DEFAULT_RESOLUTION
    try:
        sides = [int(part) for part in text.split(",")]
    except ValueError:
        sides = []
    if len(sides) not in (1, 2):
        raise UserError(f'--metadata_reso {text!r}: give "width,height" or one number')
    return f"{sides[0]}x{sides[-1]}"


def _model_spec(settings: TrainingSettings, card: Card, expert: str) -> dict[str, str]:
    now = datetime.datetime.fromtimestamp(int(time.time()))
    said, timesteps = settings.metadata, settings.timesteps
    spec = {
        "sai_model_spec": "1.0.0",
        "architecture": f"{said.metadata_arch or card.modelspec}/lora",
        "implementation": card.implementation,
        "title": (said.metadata_title or settings.saving.output_name) + (f" ({expert} noise)" if expert else ""),
        "resolution": resolution(said.metadata_reso),
        "date": now.isoformat(),
        "author": said.metadata_author,
        "description": said.metadata_description,
        "license": said.metadata_license,
        "tags": said.metadata_tags,
    }
    if timesteps.min_timestep is not None or timesteps.max_timestep is not None:
        low = 0 if timesteps.min_timestep is None else timesteps.min_timestep
        high = 1000 if timesteps.max_timestep is None else timesteps.max_timestep
        spec["timestep_range"] = f"{low},{high}"
    return {f"modelspec.{key}": str(value) for key, value in spec.items() if value is not None}
