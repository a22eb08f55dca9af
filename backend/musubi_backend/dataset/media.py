"""Which files are pictures and clips, and what lies beside them that is neither."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

from .problems import Note
from .text import read_text


@dataclass(frozen=True)
class PicturePlugin:
    """A package that teaches Pillow a format: its endings, the module to import, and what to call then."""

    package: str
    module: str
    endings: tuple[str, ...]
    register: Callable[[ModuleType], object] = lambda _: None


PICTURE_PLUGINS = (
    PicturePlugin("pillow_jxl", "pillow_jxl", (".jxl",)),
    PicturePlugin("jxlpy", "jxlpy.JXLImagePlugin", (".jxl",)),
    PicturePlugin("pillow_heif", "pillow_heif", (".heic", ".heif", ".hif"), lambda module: module.register_heif_opener()),
)
IMAGE_EXTENSIONS = (
    ".png", ".jpg", ".jpeg", ".webp", ".bmp", ".avif", ".jfif", ".jpe", ".gif", ".apng", ".tif", ".tiff", ".dib", ".tga", ".mpo",
    ".jp2", ".j2k", ".jpx", ".jpf", ".ppm", ".pgm", ".pbm", ".pnm", ".pfm", ".qoi", ".psd", ".dds", ".pcx", ".ico", ".sgi",
)  # fmt: skip
VIDEO_EXTENSIONS = (
    ".mp4", ".webm", ".avi", ".mkv", ".mov", ".flv", ".wmv", ".m4v", ".mpg", ".mpeg", ".ts", ".m2ts", ".mts", ".m2t", ".mpe", ".m1v",
    ".m2v", ".vob", ".3gp", ".3g2", ".qt", ".f4v", ".ogv", ".ogm", ".ogg", ".asf", ".mxf", ".gif", ".apng", ".dv", ".divx", ".rm", ".rmvb",
    ".nut", ".y4m", ".ivf", ".mjpeg", ".mjpg", ".mj2", ".h264", ".264", ".h265", ".265", ".hevc", ".obu", ".wtv", ".amv", ".mod", ".tod",
)  # fmt: skip
_NEVER_MEDIA = (
    ".txt", ".caption", ".json", ".jsonl", ".toml", ".yaml", ".yml", ".csv", ".md", ".safetensors", ".npz", ".npy", ".pt", ".log", ".ini",
    ".db", ".part", ".bak", ".py", ".sh", ".bat", ".html", ".xmp", ".srt", ".vtt", ".ass", ".zip",
)  # fmt: skip


def image_extensions() -> tuple[str, ...]:
    """Endings of picture files on this machine, in lower case."""
    more = dict.fromkeys(ending for plugin in PICTURE_PLUGINS if find_spec(plugin.package) for ending in plugin.endings)
    return (*IMAGE_EXTENSIONS, *more)


def images_in(folder: Path) -> list[Path]:
    """The pictures of a folder, sorted by path."""
    return _files(folder, image_extensions())


def videos_in(folder: Path) -> list[Path]:
    """The clips of a folder, sorted by path."""
    return _files(folder, VIDEO_EXTENSIONS)


def natural_order(path: Path) -> tuple[object, ...]:
    """To sort frames by: numbers in names count as numbers, so that 2 comes before 10."""
    parts = re.split(r"([0-9]+)", path.name)
    return (*((int(part), "") if number % 2 else (-1, part) for number, part in enumerate(parts)), (-1, str(path)))


def read_caption(media: Path, extension: str) -> str:
    """The text beside a picture or clip. ValueError says what is wrong with it."""
    path = media.with_name(media.stem + extension)
    try:
        return read_text(path).strip()
    except FileNotFoundError:
        raise ValueError(f"no caption: {path.name} is missing") from None
    except ValueError as error:
        raise ValueError(f"caption {path.name} is {error}") from None
    except OSError as error:
        raise ValueError(f"caption {path.name} cannot be read: {error.strerror or error}") from None


def left_out(folder: Path, media: Collection[Path], extension: str, videos: bool, ours: Collection[Path]) -> list[Note]:
    """What lies in the folder of a dataset and is not read.

    media   what was found, beside which captions may lie
    videos  is it a dataset of clips?
    ours    folders that belong to the dataset, such as that of its caches
    """
    notes = []
    known, belonging = {path.name for path in media}, {path.resolve() for path in ours}
    paths = sorted(folder.iterdir())
    stems = {path.stem for path in paths if not (extension and path.name.endswith(extension))}
    for path in paths:
        name, ending = path.name, path.suffix.lower()
        if name.startswith(".") or name in known:
            continue
        if path.is_dir():
            if path.resolve() not in belonging:
                notes.append(Note(path, f"a folder in the folder is not read; {_FOLDERS[videos]}"))
        elif extension and name.endswith(extension):
            if name.removesuffix(extension) not in stems:
                notes.append(Note(path, "a caption without a medium of the same name"))
        elif ending in (image_extensions() if videos else VIDEO_EXTENSIONS):
            notes.append(Note(path, _MISPLACED[videos]))
        elif ending not in _NEVER_MEDIA:
            notes.append(Note(path, "files of this kind are not read"))
    return notes


_FOLDERS = {
    True: "give it a dataset of its own, or list folders of frames in a video_jsonl_file",
    False: "give it a dataset of its own",
}
_MISPLACED = {
    True: "a picture among clips is not read; pictures need a dataset of their own (image_directory)",
    False: "a clip among pictures is not read; clips need a dataset of their own (video_directory)",
}


def _files(folder: Path, extensions: tuple[str, ...]) -> list[Path]:
    names = [entry.name for entry in os.scandir(folder) if not entry.name.startswith(".")]
    return sorted((folder / name for name in names if Path(name).suffix.lower() in extensions), key=str)
