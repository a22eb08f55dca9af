"""The tool `plan_memory`: what a training would need, from the command that would start it."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from .. import architectures
from ..architectures import protocol
from ..architectures.precision import followed, stored_precision
from ..atomic import write_text
from ..documents import json_text
from ..errors import UserError
from ..memory import gpus
from ..options.option import TRAIN
from ..options.parser import parse
from ..options.registry import tool, tools
from ..options.values import gigabytes
from ..training import train, vram
from ..training.planned_batch import Batch, foreseen_batch, largest_batch
from ..training.planning import Planner
from ..training.settings import TrainingSettings
from .settings import PlanSettings

if TYPE_CHECKING:
    from ..architectures.card import Card
    from ..architectures.protocol import Architecture


def run(args: Namespace) -> None:
    """Write the plan as JSON to `--output`, or print it. UserError where the training could not start with these arguments."""
    settings = PlanSettings.read(args)
    text = json_text(plan(settings))
    if settings.output:
        write_text(settings.output, text)
    else:
        sys.stdout.write(text + "\n")


def plan(settings: PlanSettings) -> dict[str, Any]:
    """As `judged`."""
    return judged(settings.gpu, *prepared(settings))


def prepared(settings: PlanSettings) -> tuple[dict[str, Any], Architecture, Planner]:
    """The values of all options of a training, its architecture and what plans it. UserError where it could not start with them."""
    values = _values(settings.training)
    architecture = protocol.load(values.pop("architecture_id"))
    architecture = architecture.at(architectures.chosen_card(architecture.card.id, values))
    device = _device(values["vram"], settings.gpu)
    if device.type == "cuda" and not torch.cuda.is_available():
        values |= _on_a_gpu(values, architecture.card)
    given, architecture = TrainingSettings.read(values), architecture.configured(values)
    precision = train.check(given, architecture)
    return values, architecture, Planner(_batch(given, architecture), precision.dtype, device)


def judged(gpu: str | None, values: Mapping[str, Any], architecture: Architecture, planner: Planner) -> dict[str, Any]:
    """sentence: what it needs; fits: within `limit` bytes; chosen: options that `--vram` chose, with what each costs; seconds: of a step,
    by `speed`, or None; and the estimate (`Estimate.as_json`). gpu: the name of one that is not there."""
    estimate, asked = planner.of(architecture), values["vram"]
    limit = vram.limit_of(asked, planner.device if torch.cuda.is_available() else torch.device("cpu"))
    if asked in (None, vram.OFF) or limit is None:
        chosen = vram.Chosen(dict(values), estimate(values))
    else:
        chosen = vram.choose(values, estimate, limit)
    found, speed = chosen.estimate, _speed(gpu, planner.device)
    return {
        "sentence": found.sentence(limit), "fits": limit is None or found.fits(limit), "limit": limit,
        "chosen": chosen.taken, "costs": list(chosen.costs),
        "seconds": None if speed is None else speed.seconds(found.operations, found.to_device),
        "speed": None if speed is None else speed.source,
        **found.as_json(),
    }  # fmt: skip


def _values(training: tuple[str, ...]) -> dict[str, Any]:
    """All options of the trainer that is named first, as it would parse them."""
    trainers = [one.name for one in tools().values() if one.verb == TRAIN]
    if not training or training[0] not in trainers:
        raise UserError(f"plan_memory is followed by the command of a training: one of {', '.join(trainers)}, and its flags")
    trainer = tool(training[0])
    return {**vars(parse(trainer.name, training[1:])), "architecture_id": trainer.architecture}


def _device(chosen: str | None, gpu: str | None) -> torch.device:
    """A GPU where there is one, or is to be one."""
    other = gpu is not None or (chosen is not None and gigabytes(chosen) is not None)
    return torch.device("cuda" if torch.cuda.is_available() or other else "cpu")


def _on_a_gpu(values: Mapping[str, Any], card: Card) -> dict[str, Any]:
    """What "auto" is there, which here would be the dtype of this CPU."""
    if values["mixed_precision"] != "auto" or values.get("dit_dtype"):
        return {}
    return {"mixed_precision": followed(stored_precision(values["dit"], card))}


def _batch(settings: TrainingSettings, architecture: Architecture) -> Batch:
    """The largest cached one; before anything is cached, what it will be like."""
    try:
        return largest_batch(train.open_dataset(settings, architecture))
    except UserError:
        return foreseen_batch(settings.batches.dataset_config, architecture)


def _speed(gpu: str | None, device: torch.device) -> gpus.Speed | None:
    if gpu is not None:
        found = gpus.of_sheet(gpu)
        if found is None:
            raise UserError(f"--gpu {gpu} is not in the table of GPUs: {', '.join(gpus.NAMES)}")
        return found
    return gpus.tried(device) if torch.cuda.is_available() else None
