"""What the nodes of a family show and check. `nodes.py` of its folder says it as data and plain functions (`NODES: FamilyNodes`), and the
node pack makes the three nodes of it: Model Paths, LoRA Trainer, Generator. Standard library only, and nothing here knows the pack.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Widget:
    """The widget of one option of the node's tool, with what differs from the option table.

    default    the node's own, where it is not musubi-tuner's
    name       of the input, where it is not the option's
    off        the widget value that leaves the option unset; needed where it is unset by default
    tasks      the tasks that have a use for it; empty: all
    """

    option: str
    default: Any = None
    name: str = ""
    off: Any = None
    tasks: tuple[str, ...] = ()
    tooltip: str | None = None
    step: float | None = None
    maximum: float | None = None
    multiline: bool | None = None
    advanced: bool | None = None


@dataclass(frozen=True)
class Own:
    """An input that is no option: the family's functions say what it means. kind: "COMBO", "STRING", "IMAGE", ..."""

    name: str
    kind: str
    tooltip: str
    default: Any = None
    choices: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()
    advanced: bool = False
    optional: bool = False


@dataclass(frozen=True)
class Size:
    """Width and height of what is generated, in pixels."""

    width: int
    height: int


class Shared(Enum):
    """Inputs of a generator that the pack itself knows; a family only says where they stand, as saved workflows keep their places."""

    LORAS = "the LoRAs"
    HIGH_LORAS = "the LoRAs of the high-noise expert"
    IMAGES = "paths and sockets of `FamilyNodes.sources`"
    DEVICE = "the device"
    SECTION_NUMBERS = "which sections `SECTION_IMAGES` are for"
    SECTION_IMAGES = "images that single sections start from"


Entry = Widget | Own | Size | Shared


@dataclass(frozen=True)
class Source:
    """One image or video to start from, or to be steered by. option: the flag it becomes; socket, kind: where it comes from in the
    graph; path: the widget for a path instead; several: any number of images, paths one per line; sections: a path may say for which
    section it is; tasks: those that take it, empty: all."""

    option: str
    socket: str
    kind: str
    path: str
    what: str
    several: bool = False
    sections: bool = False
    tasks: tuple[str, ...] = ()


START = Source("image_path", "start_image", "IMAGE", "start_image_path", "The first frame.")
END = Source("end_image_path", "end_image", "IMAGE", "end_image_path", "The last frame.")
CONTROL_VIDEO = Source("control_path", "control_video", "VIDEO", "control_video_path", "The video whose movement is followed (FC models).")
CONTROL_IMAGES = Source(
    "control_image_path", "control_images", "IMAGE", "control_image_paths", "Control images of one-frame generation.", several=True
)
CONTROL_MASKS = Source(
    "control_image_mask_path",
    "control_masks",
    "IMAGE",
    "control_mask_paths",
    "Masks of the control images, as images: white counts, black is left out.",
    several=True,
)
SOURCE_VIDEO = Source("video_path", "source_video", "VIDEO", "source_video_path", "The video to change (video-to-video).")


def _no_facts(inputs: Mapping[str, Any], files: Mapping[str, Path]) -> dict[str, Any]:
    return {}


def _fits(path: Path, task: str) -> None:
    """Any transformer does."""


def _no_problems(values: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    return ()


def _goes_together(models: Mapping[str, Any], inputs: Mapping[str, Any], have: Collection[str]) -> None:
    """Whatever is given can be generated."""


def _no_values(inputs: Mapping[str, Any]) -> dict[str, Any]:
    return {}


@dataclass(frozen=True)
class FamilyNodes:
    """What is the family's own in its three nodes.

    generates          what the generator does, in a sentence or two
    generator          its inputs in order; they may grow at the end, but never move
    sources            what a generation can start from
    trainer            inputs of the trainer besides those that all trainers have
    variant            the input of Model Paths that tells the models apart, above their files; the task, where its choices are the tasks
    facts              options that the variant or the files decide, for every tool that has them
    facts_of           (inputs of Model Paths, file of each part) -> option -> value, of `facts`. Reads headers at most
    check_transformer  (a transformer's safetensors file, task) raises UserError where they do not fit. Reads the header
    problems           (values of the generator's widgets) -> (widget, sentence) of each mistake in them; values may be missing
    check              (what Model Paths gave, inputs of the generator, options of the images given) raises UserError where they do not
                       go together
    values             (inputs of the generator) -> option -> value that no widget stands for
    """

    generates: str
    generator: tuple[Entry, ...]
    sources: tuple[Source, ...] = ()
    trainer: tuple[Widget | Own, ...] = ()
    variant: Own | None = None
    facts: tuple[str, ...] = ()
    facts_of: Callable[[Mapping[str, Any], Mapping[str, Path]], dict[str, Any]] = _no_facts
    check_transformer: Callable[[Path, str], None] = _fits
    problems: Callable[[Mapping[str, Any]], Iterable[tuple[str, str]]] = _no_problems
    check: Callable[[Mapping[str, Any], Mapping[str, Any], Collection[str]], None] = _goes_together
    values: Callable[[Mapping[str, Any]], dict[str, Any]] = _no_values
