"""What a family says of its example workflows: `templates.py` of its folder lists `TEMPLATES`, and `workflows/generate.py` makes a training
and a generation of each. Standard library only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from . import part_of
from .card import Card

_Widgets = Mapping[str, Any]


@dataclass(frozen=True)
class Template:
    """One model in two workflows, `<name>_lora_training` and `<name>_generate_with_lora`. Widgets are by name, where they differ from
    their defaults.

    lora       what its training calls the LoRA and its generation uses
    files      of Model Paths; files that are not named are the examples of the card
    dataset    of Dataset Config
    video      of the generator
    sampling   of Sampling Config
    trainer    of the trainer
    image    the samples and the video start from an image
    lora_widgets   of the generator: those that name the LoRA
    title    the model, in the image of a template; "" is the card's title
    hints    what is different with this model, for the notes in both workflows: one sentence each
    large    does not fit into many cards as it is: its training has a Memory Optimizer
    """

    name: str
    lora: str
    files: _Widgets = field(default_factory=dict)
    dataset: _Widgets = field(default_factory=dict)
    video: _Widgets = field(default_factory=dict)
    sampling: _Widgets = field(default_factory=dict)
    trainer: _Widgets = field(default_factory=dict)
    image: bool = False
    lora_widgets: tuple[str, ...] = ("lora_1",)
    title: str = ""
    hints: tuple[str, ...] = ()
    large: bool = False


def downloads_of(family: str) -> Mapping[str, str]:
    """file -> address it can be had from, of the files that an architecture's card and templates name (`DOWNLOADS` of its folder)."""
    module = part_of(family, "templates")
    found: Mapping[str, str] = getattr(module, "DOWNLOADS", {})
    return found


def hugging_face(repository: str, files: Mapping[str, str]) -> dict[str, str]:
    """file -> address, for {file: folder in a repository of huggingface.co}."""
    return {
        file: "/".join(filter(None, ("https://huggingface.co", repository, "resolve/main", folder, file))) for file, folder in files.items()
    }


def templates_of(card: Card) -> tuple[Template, ...]:
    """The templates in an architecture's folder; none where it has no such module."""
    module = part_of(card.id, "templates")
    return module.TEMPLATES if module else ()
