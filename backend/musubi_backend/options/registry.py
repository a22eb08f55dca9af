"""Which tools there are and what each takes. Tool names follow from the architectures' cards."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache

from ..architectures import cards, part_of
from ..architectures.card import Card
from ..errors import UserError
from ..suggest import did_you_mean
from .option import (
    CACHE_LATENTS,
    CACHE_TEXT,
    CAPTION,
    DEMO_DATASET,
    DEMO_MODELS,
    GENERATE,
    INSPECT_DATASET,
    LORA_COMBINE,
    LORA_CONVERT,
    LORA_EMA,
    LORA_EXTRACT,
    LORA_MERGE,
    PLAN,
    RESOURCES,
    TENSORBOARD,
    TRAIN,
    VIDEO_CONVERT,
    VIEW_DATASET,
    Group,
    Option,
    OwnOptions,
)
from .tables import GROUPS
from .tables.unsupported_tools import UNSUPPORTED_TOOLS


@dataclass(frozen=True)
class Tool:
    """One entry of the command line.

    module         where its `run` is, relative to the package; imported only once the arguments are good
    architecture   id of the card, or None for tools that belong to none
    """

    name: str
    verb: str
    summary: str
    module: str
    architecture: str | None
    groups: tuple[Group, ...]

    @property
    def options(self) -> tuple[Option, ...]:
        return tuple(option for group in self.groups for option in group.options)

    def option(self, name: str) -> Option:
        """The option called `name` (without dashes); UserError with a suggestion if there is none."""
        for option in self.options:
            if option.name == name:
                return option
        raise UserError(f"{self.name} has no option {name!r}{did_you_mean(name, [option.name for option in self.options])}")


# verb -> where its `run` is, and what it does
_VERBS = {
    CACHE_LATENTS: ("caching.latents", "encode the images and clips of a dataset for training"),
    CACHE_TEXT: ("caching.text", "encode the captions of a dataset for training"),
    TRAIN: ("training.train", "train a LoRA on a cached dataset"),
    GENERATE: ("inference.generate", "generate video or images, with or without LoRAs"),
    LORA_EMA: ("tools.lora_post_hoc_ema", "average the checkpoints of a training into one LoRA"),
    LORA_CONVERT: ("tools.convert_lora", "write a LoRA of any layout in musubi-tuner's or ComfyUI's"),
    CAPTION: ("tools.caption", "describe the images and clips of a folder with Qwen2.5-VL"),
    LORA_MERGE: ("tools.merge_lora", "add LoRAs of any layout to the weights of a transformer"),
    LORA_COMBINE: ("tools.combine_lora", "make one LoRA of several, exactly or of a given rank"),
    LORA_EXTRACT: ("tools.extract_lora", "make a LoRA of the difference of two checkpoints"),
    INSPECT_DATASET: ("tools.inspect_dataset", "say what a dataset file comes to, and what of it cannot be used and why"),
    PLAN: ("tools.plan_memory", "say what a training needs of memory and time, before it starts"),
    VIEW_DATASET: ("tools.view_dataset", "show a page of a dataset: a contact sheet, buckets, frame windows, captions"),
    VIDEO_CONVERT: ("tools.video_convert", "turn a video, or a folder of png files, into mp4, webm, gif or png files"),
    RESOURCES: ("tools.resources", "say what GPUs, system RAM and processes take, now and at most"),
    TENSORBOARD: ("tools.tensorboard", "show logs of trainings in TensorBoard, on this machine only, until it is stopped"),
    DEMO_MODELS: ("demo.models", "write tiny models with random weights, to try everything in seconds"),
    DEMO_DATASET: ("demo.clips", "write a small dataset of captioned clips to train the demo models on"),
}
_OWN_TOOLS = (
    LORA_EMA,
    LORA_CONVERT,
    LORA_MERGE,
    LORA_COMBINE,
    LORA_EXTRACT,
    CAPTION,
    INSPECT_DATASET,
    VIEW_DATASET,
    PLAN,
    VIDEO_CONVERT,
    TENSORBOARD,
    RESOURCES,
    DEMO_MODELS,
    DEMO_DATASET,
)


@lru_cache(maxsize=1)
def tools() -> dict[str, Tool]:
    """All tools by name."""
    named = [(name, verb, card) for card in cards().values() for verb, name in tool_names(card).items()]
    own = [(verb, verb, None) for verb in _OWN_TOOLS]
    return {name: _tool(name, verb, card) for name, verb, card in [*named, *own]}


def tool(name: str) -> Tool:
    """The tool called `name`; UserError with a suggestion if there is none."""
    if name in tools():
        return tools()[name]
    if name in UNSUPPORTED_TOOLS:
        raise UserError(f"{name} is a tool of musubi-tuner that this backend does not do yet. Use the musubi-tuner engine for it.")
    raise UserError(f"there is no tool {name!r}{did_you_mean(name, [*tools(), *UNSUPPORTED_TOOLS])}. Tools: {', '.join(tools())}")


def options_for(tool_name: str) -> dict[str, Option]:
    """The options of one tool by name (without dashes), in the order they are explained."""
    return {option.name: option for option in tool(tool_name).options}


def tool_names(card: Card) -> dict[str, str]:
    """verb -> tool name of one architecture."""
    latents, text = card.cache_tools
    return {
        CACHE_LATENTS: latents or f"{card.tool_prefix}cache_latents",
        CACHE_TEXT: text or f"{card.tool_prefix}cache_text_encoder_outputs",
        TRAIN: f"{card.tool_prefix}train_network",
        GENERATE: f"{card.tool_prefix}generate_{card.makes.lower()}",
    }


def _tool(name: str, verb: str, card: Card | None) -> Tool:
    module, summary = _VERBS[verb]
    return Tool(
        name,
        verb,
        f"{card.title}: {summary}" if card else summary,
        module,
        card.id if card else None,
        tuple(_groups(verb, own_options(card.id) if card else OwnOptions())),
    )


def own_options(card_id: str) -> OwnOptions:
    """What an architecture's folder says about settings; nothing where it has no `options.py`."""
    module = part_of(card_id, "options")
    return module.OPTIONS if module else OwnOptions()


def shared(verb: str, option_name: str) -> tuple[str, Option]:
    """An option for all architectures at once: the first tool of the verb that has it, and its option there with what each architecture
    adds to the explanation. KeyError where none has it."""
    of_verb = (tool for tool in tools().values() if tool.verb == verb)
    found = [(tool.name, option) for tool in of_verb for option in tool.options if option.name == option_name]
    if not found:
        raise KeyError(f"no tool of {verb} has {option_name}")
    name, first = found[0]
    return name, replace(first, hint=" ".join(filter(None, (option.hint for _, option in found))))


def _groups(verb: str, own: OwnOptions) -> Iterator[Group]:
    """The common groups, then those of the architecture; what has the same title is one group."""
    found: dict[str, Group] = {}
    for group in (group.at(verb, own) for group in (*GROUPS, *own.groups)):
        before = found.get(group.title)
        found[group.title] = replace(before, options=(*before.options, *group.options)) if before else group
    yield from (group for group in found.values() if group.options)
