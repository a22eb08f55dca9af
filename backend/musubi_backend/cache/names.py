"""File names of caches, both ways (musubi-tuner's scheme).

image   {stem}_{W:04d}x{H:04d}_{arch}.safetensors                       W x H: size of the original image
clip      {stem}_{start:05d}-{frames:03d}_{W:04d}x{H:04d}_{arch}.safetensors     W x H: size after resizing to the bucket
section   {stem}_{start:05d}-{frames:03d}-{section:04d}_...               FramePack cuts a clip into sections
text      {stem}_{arch}_te.safetensors                                    one per medium, shared by all windows of a clip
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

SUFFIX = ".safetensors"
_SIDE = r"0*[1-9]\d{0,6}"
_LATENT = re.compile(rf"(?P<stem>.*)_(?P<width>{_SIDE})x(?P<height>{_SIDE})_(?P<arch>[^_]+)\.safetensors", re.DOTALL)
_WINDOW = re.compile(rf"(?P<stem>.*)_(?P<start>\d{{1,12}})-(?P<frames>{_SIDE})(?:-(?P<section>\d{{1,12}}))?", re.DOTALL)


@dataclass(frozen=True)
class LatentName:
    """What the name of a latent cache says. `frames` is None for images."""

    stem: str
    width: int
    height: int
    start: int = 0
    frames: int | None = None
    section: int | None = None


def media_stem(path: str | os.PathLike[str]) -> str:
    """The part of a medium's path that its caches are named after."""
    return Path(path).stem


def latent_name(name: LatentName, architecture: str) -> str:
    """File name of a latent cache."""
    stem = name.stem
    if name.frames is not None:
        stem += f"_{name.start:05d}-{name.frames:03d}"
        if name.section is not None:
            stem += f"-{name.section:04d}"
    return f"{stem}_{name.width:04d}x{name.height:04d}_{architecture}{SUFFIX}"


def text_name(stem: str, architecture: str) -> str:
    """File name of a text cache."""
    return f"{stem}_{architecture}_te{SUFFIX}"


def parse_latent_name(name: str, architecture: str, *, video: bool) -> LatentName | None:
    """The parts of a latent cache's file name; None when it is not one of this architecture and kind."""
    match = _LATENT.fullmatch(name)
    if match is None or match["arch"] != architecture:
        return None
    size = int(match["width"]), int(match["height"])
    if not video:
        return LatentName(match["stem"], *size)
    window = _WINDOW.fullmatch(match["stem"])
    if window is None:
        return None
    section = int(window["section"]) if window["section"] else None
    return LatentName(window["stem"], *size, int(window["start"]), int(window["frames"]), section)


def parse_text_name(name: str, architecture: str) -> str | None:
    """The stem of a text cache's file name; None when it is not one of this architecture."""
    ending = text_name("", architecture)
    return name.removesuffix(ending) if name.endswith(ending) else None


def latent_files(folder: Path, architecture: str) -> list[Path]:
    """All latent caches of one architecture in `folder`, sorted by name; empty when there is no such folder."""
    return _ending_with(folder, f"_{architecture}{SUFFIX}")


def text_files(folder: Path, architecture: str) -> list[Path]:
    """All text caches of one architecture in `folder`, sorted by name; empty when there is no such folder."""
    return _ending_with(folder, text_name("", architecture))


def _ending_with(folder: Path, ending: str) -> list[Path]:
    if not folder.is_dir():
        return []
    names = (entry.name for entry in os.scandir(folder))
    return [folder / name for name in sorted(names) if name.endswith(ending) and not name.startswith(".")]
