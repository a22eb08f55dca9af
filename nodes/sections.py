"""Images that single sections of a video start from, of models that make it section by section: which sections, and the images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..backend.musubi_backend.architectures.widgets import START
from ..backend.musubi_backend.counted import counted
from ..backend.musubi_backend.errors import UserError
from . import media_inputs
from .spec import Host, Input

NUMBERS = Input(
    "section_numbers",
    "STRING",
    "Which sections the images of section_images are for, in their order, separated by commas: 0 is the first, -1 the last.",
    default="",
    advanced=True,
)
IMAGES = Input("section_images", "IMAGE", "Images that single sections start from, besides start_image", optional=True)


def numbers(text: str) -> list[int]:
    """The sections a widget names. UserError where it names none."""
    try:
        return [int(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise UserError(f"section_numbers: {text!r} is not a list of whole numbers such as 1, -1") from None


def with_images(host: Host, inputs: dict[str, Any], chosen: dict[str, Any], folder: Path) -> dict[str, Any]:
    """`chosen` (option -> path) with the images of sections behind the start image; those of the graph are written into `folder`."""
    wanted = numbers(inputs["section_numbers"])
    if inputs["section_images"] is None and not wanted:
        return chosen
    files = [] if inputs["section_images"] is None else host.image_files(inputs["section_images"], folder, "section_images")
    if len(files) != len(wanted):
        raise UserError(
            f"section_numbers names {counted(len(wanted), 'section')}, section_images has {counted(len(files), 'image')}: give as many"
        )
    if media_inputs.names_sections(chosen[START.option]):
        raise UserError("start_image_path names images of sections already: use that, or section_images")
    parts = [f"0:{chosen[START.option]}", *(f"{number}:{file}" for number, file in zip(wanted, files, strict=True))]
    return {**chosen, START.option: media_inputs.SECTIONS.join(parts)}
