"""What one setting is. The tables next to this file hold every setting once; everything else is derived from them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

CACHE_LATENTS = "cache_latents"
CACHE_TEXT = "cache_text"
TRAIN = "train"
GENERATE = "generate"
DEMO_MODELS = "demo_models"
DEMO_DATASET = "demo_dataset"
VIDEO_CONVERT = "video_convert"
INSPECT_DATASET = "inspect_dataset"
TENSORBOARD = "tensorboard"
RESOURCES = "resources"
LORA_EMA = "lora_post_hoc_ema"
LORA_CONVERT = "convert_lora"
LORA_MERGE = "merge_lora"
LORA_COMBINE = "combine_lora"
LORA_EXTRACT = "extract_lora"
VIEW_DATASET = "view_dataset"
CAPTION = "caption_images_by_qwen_vl"
PLAN = "plan_memory"

WEIGHTS, LENGTH, START, FILE, NOTHING = "weights", "length", "start", "file", "nothing"
"""What a trainer's setting changes: the numbers that are trained (in their last bit at least), how long it trains, what it begins with,
what the saved files hold besides the weights or in which precision, or none of these: where it runs, logs, samples, how it saves memory."""


def steps_or_share(text: str) -> int | float:
    """A number of steps ("100"), or a share of all steps ("0.1", "10%"): whole numbers from 1 up are steps."""
    number = float(text[:-1]) / 100 if text.endswith("%") else float(text)
    return int(number) if number >= 1 and number.is_integer() else number


@dataclass(frozen=True)
class Option:
    """One setting of a tool: its flag, its value rules and its explanation.

    flag           "--learning_rate"; the destination and the `--config_file` key are the name without dashes. Without dashes, a
                   positional argument
    kind           str, int, float, or bool for a switch; or a function from a string, raising ValueError
    hint           a sentence of the tool's architecture, with its name, behind the explanation (`OwnOptions.hints`)
    nargs          None, "*", "+" or a number, as in argparse; a default is then a tuple or None
    required       the tool does not start without it
    minimum, maximum   inclusive bounds of every value
    unit           for tooltips: "steps", "GB", "frames", ...
    path           what the value names on disk: "file", "folder" or "any" (either) must exist, "output" need not; "" for other values
    verbs          what the setting belongs to, where that is less than its group's verbs
    on_request     only architectures that take it have it (`OwnOptions.takes`)
    most           how many values it takes at most, where that is not any number of them
    unsupported    reason why a flag of musubi-tuner is not supported; using it is an error, never ignored
    unsupported_choices    the same for single choices: choice -> reason
    own            musubi-tuner has no such flag: commands with it are for this backend only
    own_choices    the same for single choices
    no_effect      why the flag changes nothing here; it is accepted so that musubi-tuner's command lines run
    neutral        values of a rejected flag that ask for nothing and so are accepted besides the default
    advanced       hide the widget behind ComfyUI's "advanced"
    effect         of a trainer's setting: what it changes (`WEIGHTS`, ...). It decides what makes a training another one, and what a
                   continued one is compared in
    differs        verb -> the fields that are different there
    """

    flag: str
    kind: type | Callable[[str], Any] = str
    default: Any = None
    help: str = ""
    hint: str = ""
    choices: tuple[str, ...] | None = None
    nargs: str | int | None = None
    required: bool = False
    minimum: float | None = None
    maximum: float | None = None
    unit: str = ""
    path: str = ""
    verbs: tuple[str, ...] = ()
    on_request: bool = False
    most: int | None = None
    unsupported: str | None = None
    unsupported_choices: Mapping[str, str] = field(default_factory=dict, hash=False)
    own: bool = False
    own_choices: tuple[str, ...] = ()
    no_effect: str | None = None
    neutral: tuple[Any, ...] = ()
    advanced: bool = False
    effect: str = ""
    differs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict, hash=False)

    @property
    def name(self) -> str:
        """Destination name: the key in the namespace and in `--config_file`."""
        return self.flag.removeprefix("--")

    @property
    def explanation(self) -> str:
        """What it does, with what its architecture adds."""
        return f"{self.help} {self.hint}".rstrip()

    @property
    def is_positional(self) -> bool:
        return not self.flag.startswith("-")

    @property
    def is_switch(self) -> bool:
        return self.kind is bool

    def at(self, verb: str, own: OwnOptions) -> Option:
        """This option as a tool has it: that of `verb` of the architecture whose options are `own`."""
        changes = {**self.differs.get(verb, {}), **own.changes.get(self.name, {}).get(verb, {})}
        return dataclasses.replace(self, differs={}, hint=own.hints.get(self.name, ""), **changes)


@dataclass(frozen=True)
class Group:
    """Options that are explained together: one block of `--help` and of `docs/flags.md`."""

    title: str
    verbs: tuple[str, ...]
    options: tuple[Option, ...]

    def at(self, verb: str, own: OwnOptions) -> Group:
        """The part of this group that a tool has; its options may be none."""
        mine = (
            option.at(verb, own)
            for option in self.options
            if verb in (option.verbs or self.verbs)
            and (not option.on_request or option.name in own.takes)
            and verb not in own.lacks.get(option.name, ())
        )
        return Group(self.title, (verb,), tuple(mine))


@dataclass(frozen=True)
class OwnOptions:
    """What an architecture's folder says about settings: `OPTIONS` in its `options.py`.

    groups    the settings that only it has; a group with the title of a common one adds to that
    takes     the common settings that architectures have on request
    lacks     common settings that it does not have: name -> verbs
    changes   what is different about a setting: name -> verb -> fields of `Option`
    hints     `Option.hint` of common settings
    """

    groups: tuple[Group, ...] = ()
    takes: tuple[str, ...] = ()
    lacks: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    changes: Mapping[str, Mapping[str, Mapping[str, Any]]] = field(default_factory=dict)
    hints: Mapping[str, str] = field(default_factory=dict)
