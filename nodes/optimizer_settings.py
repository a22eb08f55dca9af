"""The optimizer of a training: any of the table, a preset, its arguments, and how the learning rate changes."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from ..backend.musubi_backend.errors import UserError
from ..backend.musubi_backend.optimizers import registry
from ..backend.musubi_backend.optimizers.entry import Entry
from ..backend.musubi_backend.options.option import TRAIN
from . import rates
from .checks import check, complete
from .families import any_tool, shared_widget
from .jobs.wording import in_widgets
from .spec import Host, Input, Node, NodeSpec, Output, Problem, Result, refused
from .widgets import settings

OPTIMIZER = "MUSUBITUNER_OPTIMIZER"
_SCHEDULERS = (
    "constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "cosine_with_min_lr", "polynomial", "inverse_sqrt",
    "warmup_stable_decay", "rex",
)  # fmt: skip
_FIRST = ("adamw", "adamw8bit", "adafactor")  # as saved workflows have them
_OPTIMIZERS = (
    *_FIRST,
    *(entry.name for group in registry.GROUPS for entry in registry.ENTRIES
      if entry.group == group and registry.plain(entry.name) not in _FIRST),
)  # fmt: skip
_OPTIMIZER_HELP = (
    "Which optimizer updates the LoRA. adamw is a safe choice; adamw8bit and adafactor take less memory. docs/optimizers.md explains all; "
    "those of other libraries, and 8-bit ones on a CPU, need install.py --with optimizers."
)
_NO_PRESET = "none"
_MOST_STEPS = 10_000_000
PRESETS: Mapping[str, tuple[Entry, Mapping[str, Any]]] = {
    f"{entry.name}: {name}": (entry, preset) for entry in registry.ENTRIES for name, preset in entry.presets.items()
}
_ARGUMENT = re.compile(r"[A-Za-z_]\w*=[\w.,()\[\]+\-'\" ]+")


class OptimizerConfig(Node):
    spec = NodeSpec(
        id="MusubiTuner_OptimizerConfig",
        display_name="Optimizer Config",
        category="MusubiTuner/Train",
        description="The optimizer, its learning rate, and how the rate changes over the training.",
        inputs=(
            shared_widget(TRAIN, "optimizer_type", "adamw8bit", kind="COMBO", choices=_OPTIMIZERS, tooltip=_OPTIMIZER_HELP),
            shared_widget(TRAIN, "learning_rate", 2e-4, step=1e-6),
            shared_widget(TRAIN, "lr_scheduler", kind="COMBO", choices=_SCHEDULERS, default="constant", off=None),
            shared_widget(TRAIN, "lr_warmup_steps", kind="INT", default=0, maximum=1_000_000),
            shared_widget(TRAIN, "lr_decay_steps", kind="INT", default=0, maximum=1_000_000),
            shared_widget(TRAIN, "lr_scheduler_num_cycles"),
            shared_widget(TRAIN, "lr_scheduler_power"),
            shared_widget(TRAIN, "lr_scheduler_min_lr_ratio", off=0.0),
            shared_widget(TRAIN, "max_grad_norm"),
            Input("optimizer_args", "STRING", "Arguments of the optimizer, one name=value per line, for example weight_decay=0.01.",
                  default="", multiline=True, advanced=True),
            Input("optimizer_preset", "COMBO", "Arguments that belong together, for the optimizer that it names; lines of optimizer_args "
                  "count more. In the page it also fills in the learning rate that it is meant for.",
                  default=_NO_PRESET, choices=(_NO_PRESET, *PRESETS), optional=True),
        ),
        outputs=(Output("optimizer", OPTIMIZER, "For the trainer"),),
    )  # fmt: skip

    def validate(self, host: Host, **constants: Any) -> Iterator[Problem]:
        wrong = list(refused("optimizer_args", _lines, constants.get("optimizer_args", "")))
        if not wrong and "optimizer_type" in constants:
            wrong = list(refused("optimizer_preset", _preset, constants["optimizer_type"], constants.get("optimizer_preset")))
        if wrong or any(entry.name not in constants for entry in self.spec.inputs if not entry.optional):
            yield from wrong
        else:
            yield from rates.problems(self.values(constants))

    async def run(self, host: Host, **inputs: Any) -> Result:
        return Result((self.values(inputs),))

    def values(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """option name -> value. UserError for a preset of another optimizer, and lines that are none."""
        inputs = complete(self.spec, inputs)
        given = _lines(inputs["optimizer_args"])
        named = {line.partition("=")[0] for line in given}
        preset = _preset(inputs["optimizer_type"], inputs["optimizer_preset"])
        arguments = [*(f"{name}={value!r}" for name, value in preset.items() if name not in named), *given]
        return settings(self.spec.inputs, inputs) | ({"optimizer_args": arguments} if arguments else {})


def _lines(text: str) -> list[str]:
    """`name=value` lines, checked: nothing in them can become a flag."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    for line in lines:
        if not _ARGUMENT.fullmatch(line):
            raise UserError(f"optimizer_args: {line!r} is not of the form name=value, such as weight_decay=0.01")
    return [re.sub(r"\s+", "", line) for line in lines]


def _preset(kind: str, name: str | None) -> Mapping[str, Any]:
    """The arguments of the chosen preset. UserError where it is another optimizer's."""
    entry, preset = PRESETS.get(name or _NO_PRESET, (None, {}))
    if entry is not None and registry.find(kind) is not entry:
        raise UserError(f"optimizer_preset is for {entry.name}: choose that as optimizer_type, or the preset {_NO_PRESET}")
    return {argument: value for argument, value in preset.items() if argument != "learning_rate"}


def schedule(host: Host, values: Any, steps: Any) -> dict[str, Any]:
    """What the page draws: "rates", pairs of a step and its learning rate, and a "note" about them. UserError for values of widgets that
    are none, or that no training would take."""
    node = OptimizerConfig()
    if not isinstance(values, dict) or not isinstance(steps, int) or not 1 <= steps <= _MOST_STEPS:
        raise UserError(f"the values of widgets and a number of steps up to {_MOST_STEPS} are needed")
    widgets = {entry.name: values[entry.name] for entry in node.spec.inputs if entry.name in values}
    wrong = [problem.text for problem in check(node, host, widgets)]
    if wrong:
        raise UserError(wrong[0])
    try:
        points, note = rates.curve(node.values(widgets), steps)
    except UserError as error:
        raise UserError(in_widgets(any_tool(TRAIN), str(error))) from None
    return {"rates": points, "note": note}


def for_the_page() -> dict[str, Any]:
    """The table as `web/optimizer_config.js` shows it, by the choices of `optimizer_type`."""
    found = {choice: registry.find(choice) for choice in _OPTIMIZERS}
    return {
        choice: {
            "group": entry.group,
            "help": entry.help,
            "rate": entry.rate,
            "learning_rate": entry.learning_rate,
            "presets": {f"{entry.name}: {name}": dict(preset) for name, preset in entry.presets.items()},
            "arguments": [
                {
                    "name": argument.name,
                    "kind": argument.kind,
                    "default": argument.default,
                    "help": argument.help,
                    "bounds": [argument.minimum, argument.maximum] if math.isfinite(argument.maximum) else None,
                    "choices": list(argument.choices),
                    "none": argument.none,
                }
                for argument in entry.arguments
            ],
        }
        for choice, entry in found.items()
        if entry is not None
    }
