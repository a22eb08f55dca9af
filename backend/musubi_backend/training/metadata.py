"""What a LoRA file says about itself: kohya's ss_* keys, the ModelSpec block and the additional-networks hashes.

Every value is text. Names and rules are musubi-tuner's; ModelSpec: github.com/Stability-AI/ModelSpec.
"""

from __future__ import annotations

import datetime
import json
import random
import time
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UserError

if TYPE_CHECKING:
    from ..architectures.card import Card

KEPT_WITHOUT_METADATA = ("ss_base_model_version", "ss_network_module", "ss_network_dim", "ss_network_alpha", "ss_network_args")
DEFAULT_RESOLUTION = "1280x720"  # musubi-tuner's placeholder for video models; buckets hold the real sizes

# keys whose value is the argument of the same name
_FROM_ARGUMENTS = (
    "output_name", "learning_rate", "gradient_checkpointing", "gradient_checkpointing_cpu_offload", "gradient_accumulation_steps",
    "max_train_steps", "lr_warmup_steps", "lr_scheduler", "network_module", "network_dim", "network_alpha", "network_dropout",
    "mixed_precision", "seed", "training_comment", "max_grad_norm", "weighting_scheme", "logit_mean", "logit_std", "mode_scale",
    "guidance_scale", "timestep_sampling", "sigmoid_scale", "discrete_flow_shift",
)  # fmt: skip


@dataclass(frozen=True)
class RunFacts:
    """What the metadata needs beyond the arguments."""

    items: int
    batches_per_epoch: int
    epochs: int
    optimizer: str
    datasets: list[dict[str, Any]]


def training_metadata(args: Namespace, card: Card, facts: RunFacts) -> dict[str, str]:
    """The keys that stay the same during one run. Call it at the start: it holds the starting time."""
    values: dict[str, Any] = {f"ss_{name}": getattr(args, name) for name in _FROM_ARGUMENTS}
    values |= {
        "ss_session_id": random.SystemRandom().randrange(2**32),
        "ss_training_started_at": time.time(),
        "ss_num_train_items": facts.items,
        "ss_num_batches_per_epoch": facts.batches_per_epoch,
        "ss_num_epochs": facts.epochs,
        "ss_base_model_version": card.name,
        "ss_optimizer": facts.optimizer,
        "ss_fp8_base": bool(args.fp8_base),
        "ss_full_fp16": False,
        "ss_full_bf16": False,
        "ss_datasets": json.dumps(facts.datasets),
    }
    if args.network_args:
        values["ss_network_args"] = json.dumps(dict(pair.split("=", 1) for pair in args.network_args))
    if args.dit:
        values["ss_sd_model_name"] = Path(args.dit).name
    if args.vae:
        values["ss_vae_name"] = Path(args.vae).name
    return {key: str(value) for key, value in values.items()}


def file_metadata(run: Mapping[str, str], args: Namespace, card: Card, step: int, epoch: int, expert: str = "") -> dict[str, str]:
    """The metadata of one saved file, without hashes. epoch: as musubi-tuner counts it (see `checkpoints`). expert: the one of two
    that the file is for, if it is for one only."""
    if args.no_metadata:
        values = {key: run[key] for key in KEPT_WITHOUT_METADATA if key in run}
    else:
        values = {**run, "ss_training_finished_at": str(time.time()), "ss_steps": str(step), "ss_epoch": str(epoch)}
    return {**values, **({"ss_expert": expert} if expert else {}), **_model_spec(args, card, expert)}


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


def _model_spec(args: Namespace, card: Card, expert: str) -> dict[str, str]:
    now = datetime.datetime.fromtimestamp(int(time.time()))
    spec = {
        "sai_model_spec": "1.0.0",
        "architecture": f"{args.metadata_arch or card.modelspec}/lora",
        "implementation": card.implementation,
        "title": (args.metadata_title or args.output_name) + (f" ({expert} noise)" if expert else ""),
        "resolution": resolution(args.metadata_reso),
        "date": now.isoformat(),
        "author": args.metadata_author,
        "description": args.metadata_description,
        "license": args.metadata_license,
        "tags": args.metadata_tags,
    }
    if args.min_timestep is not None or args.max_timestep is not None:
        low = 0 if args.min_timestep is None else args.min_timestep
        high = 1000 if args.max_timestep is None else args.max_timestep
        spec["timestep_range"] = f"{low},{high}"
    return {f"modelspec.{key}": str(value) for key, value in spec.items() if value is not None}
