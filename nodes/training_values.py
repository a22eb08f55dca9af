"""The values of a training's options that nodes before the trainer say: for the trainer, and for what plans its memory."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..backend.musubi_backend.architectures.card import Card
from ..backend.musubi_backend.atomic import write_text
from ..backend.musubi_backend.errors import UserError
from ..backend.musubi_backend.options.option import TRAIN
from ..backend.musubi_backend.options.registry import options_for, tool_names
from .cache import is_one_frame
from .models import model_values


def common_values(card: Card, inputs: Mapping[str, Any], dataset: Mapping[str, Any] | None) -> dict[str, Any]:
    """option name -> value, from the inputs `models`, `lora_config`, `optimizer` and `sampling` (None where nothing is connected), without
    what only the dataset says where that is None. UserError for a setting that the family does not have."""
    tool = tool_names(card)[TRAIN]
    models = model_values(card, inputs["models"], tool)
    if not prompts_of(inputs["sampling"]):  # only samples need more than the transformers
        samplers = {part.name for part in card.parts} - {part.name for part in card.transformers}
        models = {name: value for name, value in models.items() if name not in samplers}
    common = {
        **inputs["lora_config"],
        **({"optimizer_type": "AdamW"} if inputs["optimizer"] is None else inputs["optimizer"]),
        **(inputs["sampling"]["settings"] if inputs["sampling"] else {}),
    }
    known = options_for(tool)
    surplus = sorted(name for name, value in common.items() if name not in known and value is not False)
    if surplus:
        raise UserError(f"{' and '.join(surplus)}: {card.title} has no such setting; set it back to its default")
    follows = _follows(dataset) if dataset is not None else {}
    return {
        **({"dataset_config": dataset["toml"]} if dataset is not None else {}),
        **models,
        "network_module": card.network_module,
        **{name: value for name, value in {**common, **follows}.items() if name in known},
    }


def prompts_of(sampling: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """The entries of a file of sample prompts; none where nothing is connected."""
    return sampling["prompts"] if sampling else []


def write_prompts(sampling: Mapping[str, Any] | None, folder: Path) -> dict[str, str]:
    """`sample_prompts` with a file in `folder`; nothing where there are none."""
    prompts, file = prompts_of(sampling), folder / "sample_prompts.json"
    if not prompts:
        return {}
    write_text(file, json.dumps(prompts, ensure_ascii=False, indent=1))
    return {"sample_prompts": str(file)}


def _follows(dataset: Mapping[str, Any]) -> dict[str, Any]:
    """What a training must know of its dataset."""
    windows = {entry.get("fp_latent_window_size") for entry in dataset["datasets"]} - {None}
    if len(windows) > 1:
        raise UserError(f"the datasets have different latent_window_size: {', '.join(map(str, sorted(windows)))}; give all the same")
    return {"one_frame": is_one_frame(dataset), **({"latent_window_size": windows.pop()} if windows else {})}
