"""Settings of a training that few need: which layers are trained, what lies below the LoRA, where it logs, torch.compile's older flags."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..backend.musubi_backend import content
from ..backend.musubi_backend.counted import counted
from ..backend.musubi_backend.errors import UserError
from ..backend.musubi_backend.lora.selection import Selection, compiled, in_lines, paths_in, without_effect
from ..backend.musubi_backend.options.option import TRAIN
from . import loras
from .families import shared_widget
from .jobs.guard import plain_name
from .models import MODELS, card_of
from .spec import Host, Input, Node, NodeSpec, Output, Problem, Result, refused
from .widgets import settings

EXPERT = "MUSUBITUNER_EXPERT_SETTINGS"
_PATTERNS = ("exclude_patterns", "include_patterns")
_NAMES = ("log_prefix", "log_tracker_name")
_BASE = "base_"
_MOST = 4


class ExpertSettings(Node):
    spec = NodeSpec(
        id="MusubiTuner_ExpertSettings",
        display_name="Expert Settings",
        category="MusubiTuner/Train",
        description="Settings that few need, for LoRA Training Config: which layers are trained, LoRAs below the new one, where it logs, "
        "and how torch.compile works. With models connected it shows which layers the patterns choose.",
        inputs=(
            Input("models", MODELS, "From a Model Paths node, to see which of its layers are trained.", optional=True),
            Input("exclude_patterns", "STRING", "Layers to leave out: regular expressions, one per line, compared with the whole name, for "
                  "example .*ffn.* or blocks\\.[0-9]\\..*", default="", multiline=True),
            Input("include_patterns", "STRING", "Of the layers left out, by default too, those to train all the same; one regular "
                  "expression per line. Only the single blocks from the 10th, for example: exclude .* and include "
                  "single_blocks\\.\\d{2}\\.linear.*", default="", multiline=True),
            Input("verbose", "BOOLEAN", "Write every layer, its rank and alpha into the log.", default=False),
            *loras.inputs(_MOST, _BASE, " to the model before training: the new LoRA is learned on top of it, and does not hold it"),
            shared_widget(TRAIN, "log_with"),
            shared_widget(TRAIN, "log_prefix"),
            shared_widget(TRAIN, "log_tracker_name"),
            shared_widget(TRAIN, "wandb_run_name"),
            shared_widget(TRAIN, "log_config"),
            shared_widget(TRAIN, "dynamo_backend", off="NO"),
            shared_widget(TRAIN, "dynamo_mode"),
            shared_widget(TRAIN, "dynamo_fullgraph"),
            shared_widget(TRAIN, "dynamo_dynamic"),
            shared_widget(TRAIN, "log_optimizer_every", off=0, optional=True),
        ),
        outputs=(
            Output("expert_settings", EXPERT, "For LoRA Training Config"),
            Output("layers", "STRING", "The layers that are trained, one per line; empty without models"),
        ),
    )  # fmt: skip

    def validate(self, host: Host, **constants: Any) -> Iterator[Problem]:
        for name in _PATTERNS:
            yield from refused(name, _patterns, constants.get(name, ""), name)
        for name in _NAMES:
            if constants.get(name):
                yield from refused(name, plain_name, constants[name], name)

    def fingerprint(self, host: Host, **constants: Any) -> str:
        return content.of_files(loras.files(host, constants, _BASE)[0])

    async def run(self, host: Host, **inputs: Any) -> Result:
        files, multipliers = loras.files(host, inputs, _BASE)
        arguments = [f"{name}={lines!r}" for name in _PATTERNS if (lines := _lines(inputs[name]))]
        value = settings(self.spec.inputs, inputs)
        if files:
            value |= {"base_weights": [str(file) for file in files], "base_weights_multiplier": multipliers}
        if arguments or inputs["verbose"]:
            value["network_args"] = [*arguments, *(["verbose=True"] if inputs["verbose"] else [])]
        if inputs["models"] is None:
            return Result((value, ""))
        layers, total, notes = await asyncio.to_thread(_chosen, inputs)
        host.warnings += notes
        line = f"{len(layers)} of {counted(total, 'layer is', 'layers are')} trained"
        return Result((value, "\n".join(layers)), text="\n".join([line, *in_lines(layers)]), line=line)


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip()]


def _patterns(text: str, name: str) -> Any:
    return compiled(_lines(text), name)


def _chosen(inputs: dict[str, Any]) -> tuple[list[str], int, list[str]]:
    """The layers of the connected transformer that are trained, how many there are, and what is to be said of patterns. UserError where
    none is left."""
    card = card_of(inputs["models"])
    selection = Selection(*(_patterns(inputs[name], name) for name in _PATTERNS))
    paths = paths_in(Path(next(inputs["models"][part.name] for part in card.transformers if part.name in inputs["models"])), card)
    chosen = [path for path in paths if selection.of(card).takes(path)]
    if not chosen:
        raise UserError("exclude_patterns leave no layer to train: exclude less, or name in include_patterns what is to be trained")
    return chosen, len(paths), [f"{key}_patterns: {problem}" for key, problem in without_effect(selection, card, paths)]
