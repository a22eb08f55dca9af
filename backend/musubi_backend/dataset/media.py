"""Which files are images and clips, and what lies next to them that is neither."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Callable, Collection
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

from ..texts import read_text
from .problems import Note

LONGEST_CAPTION = 2**20
"""Bytes of a caption's file: far beyond what any text encoder reads."""


@dataclass(frozen=True)
class ImagePlugin:
    """A package that teaches Pillow a format: its endings, the module to import, and what to call then."""

    package: str
    module: str
    endings: tuple[str, ...]
    register: Callable[[ModuleType], object] = lambda _: None


IMAGE_PLUGINS = (
    ImagePlugin("pillow_jxl", "pillow_jxl", (".jxl",)),
    ImagePlugin("jxlpy", "jxlpy.JXLImagePlugin", (".jxl",)),
    ImagePlugin("pillow_heif", "pillow_heif", (".heic", ".heif", ".hif"), lambda module: module.register_heif_opener()),
)
ANIMATED_EXTENSIONS = (".webp", ".avif", ".avifs", ".png")
"""Of images that are clips where they move."""
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
    """Endings of image files on this machine, in lower case."""
    more = dict.fromkeys(ending for plugin in IMAGE_PLUGINS if find_spec(plugin.package) for ending in plugin.endings)
    return (*IMAGE_EXTENSIONS, *more)


def images_in(folder: Path) -> list[Path]:
    """The images of a folder, sorted by path."""
    return _files(folder, image_extensions())


def videos_in(folder: Path) -> list[Path]:
    """The clips of a folder, animated images among them, sorted by path."""
    moving = [path for path in _files(folder, ANIMATED_EXTENSIONS) if is_animation(path) or _is_moving_png(path)]
    return sorted([*_files(folder, VIDEO_EXTENSIONS), *moving], key=str)


def is_animation(path: Path) -> bool:
    """Is this an animated WebP (RFC 9649, 2.7) or a sequence of AVIF images, by its first bytes?"""
    head = _head(path)
    return (head[:4] == b"RIFF" and head[8:16] == b"WEBPVP8X" and bool(head[20:21] and head[20] & 2)) or head[4:12] == b"ftypavis"


def plugins_for(path: Path) -> list[ImagePlugin]:
    """The installed packages that Pillow needs for an image, by its ending or contents (phones' HEIC often ends in .jpg)."""
    ending = ".heic" if _is_heif(path) else path.suffix.lower()
    return [plugin for plugin in IMAGE_PLUGINS if ending in plugin.endings and find_spec(plugin.package)]


def unread_reason(path: Path) -> str:
    """Why Pillow does not know a file that should be an image, and what to do."""
    ending = ".heic" if _is_heif(path) else path.suffix.lower()
    return _ADVICE.get(ending, "this is not an image, a damaged one, or of a kind that is not read; save it as PNG or JPEG")


def spelled(path: Path) -> Path:
    """The file of this name, also where its letters are spelled in another way: macOS writes an accent as a character of its own.
    `path` itself where there is none."""
    forms = (Path(unicodedata.normalize(form, os.fspath(path))) for form in ("NFC", "NFD"))
    return path if os.fspath(path).isascii() or path.exists() else next((other for other in forms if other.exists()), path)


def one_spelling(name: str) -> str:
    """Equal for names that people take for the same one."""
    return unicodedata.normalize("NFC", name)


def natural_order(path: Path) -> tuple[object, ...]:
    """To sort frames by: numbers in names count as numbers, so that 2 comes before 10."""
    parts = re.split(r"([0-9]+)", path.name)
    return (*((int(part), "") if number % 2 else (-1, part) for number, part in enumerate(parts)), (-1, str(path)))


def read_caption(media: Path, extension: str) -> str:
    """The text next to an image or clip. ValueError says what is wrong with it."""
    path = media.with_name(media.stem + extension)
    path = next((found for name in (extension, extension.upper()) if (found := spelled(media.with_name(media.stem + name))).exists()), path)
    try:
        if path.stat().st_size > LONGEST_CAPTION:
            raise ValueError(f"too long: {path.stat().st_size} bytes, and {LONGEST_CAPTION} are more than any text encoder reads")
        return read_text(path).strip()
    except FileNotFoundError:
        raise ValueError(f"no caption: {path.name} is missing") from None
    except ValueError as error:
        raise ValueError(f"caption {path.name} is {error}") from None
    except OSError as error:
        raise ValueError(f"caption {path.name} cannot be read: {error.strerror or error}") from None


def left_out(folder: Path, media: Collection[Path], extension: str, videos: bool, ours: Collection[Path]) -> list[Note]:
    """What lies in the folder of a dataset and is not read.

    media   what was found, next to which captions may lie
    videos  is it a dataset of clips?
    ours    folders that belong to the dataset, such as that of its caches
    """
    notes = []
    known, belonging = {path.name for path in media}, {path.resolve() for path in ours}
    paths = sorted(folder.iterdir())
    stems = {one_spelling(path.stem) for path in paths if not _is_caption(path.name, extension)}
    for path in paths:
        name, ending = path.name, path.suffix.lower()
        if name.startswith(".") or name in known:
            continue
        if path.is_dir():
            if path.resolve() not in belonging:
                notes.append(Note(path, f"a folder in the folder is not read; {_FOLDERS[videos]}"))
        elif _is_caption(name, extension):
            if one_spelling(name[: -len(extension)]) not in stems:
                notes.append(Note(path, "a caption without a medium of the same name"))
        elif ending in (image_extensions() if videos else VIDEO_EXTENSIONS):
            notes.append(Note(path, _MISPLACED[videos]))
        elif ending not in _NEVER_MEDIA:
            notes.append(Note(path, _ADVICE.get(ending, "files of this kind are not read")))
    return notes


def _is_caption(name: str, extension: str) -> bool:
    return bool(extension) and name.endswith((extension, extension.upper()))


def _is_moving_png(path: Path) -> bool:
    """Is there an animation (chunk acTL of PNG's third edition) before the pixels?"""
    head = _head(path, 1 << 16)
    return head.startswith(b"\x89PNG") and b"acTL" in head.partition(b"IDAT")[0]


def _head(path: Path, size: int = 32) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(size)
    except OSError:
        return b""


def _is_heif(path: Path) -> bool:
    return re.match(rb".{4}ftyp(heic|heix|heim|heis|mif1|msf1|hevc|hevx)", _head(path), re.DOTALL) is not None


_ADVICE = {
    **dict.fromkeys(
        (".heic", ".heif", ".hif"),
        "HEIC images are read where the package pillow-heif is installed in the backend's environment; or save them as JPEG",
    ),
    ".jxl": "JPEG XL images are read where the package pillow-jxl-plugin is installed in the backend's environment; or save them as PNG",
    **dict.fromkeys(
        (".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf", ".pef", ".srw"),
        "raw images of cameras are not read; develop them and save them as PNG or JPEG",
    ),
    **dict.fromkeys((".exr", ".hdr"), "HDR images without a white point are not read; save them as PNG or JPEG"),
    **dict.fromkeys((".svg", ".svgz", ".pdf", ".eps", ".ai"), "vector images and documents are not read; save them as PNG"),
}
_FOLDERS = {
    True: "give it a dataset of its own, or list folders of frames in a video_jsonl_file",
    False: "give it a dataset of its own",
}
_MISPLACED = {
    True: "an image among clips is not read; images need a dataset of their own (image_directory)",
    False: "a clip among images is not read; clips need a dataset of their own (video_directory)",
}


def _files(folder: Path, extensions: tuple[str, ...]) -> list[Path]:
    names = [entry.name for entry in os.scandir(folder) if not entry.name.startswith(".")]
    return sorted((folder / name for name in names if Path(name).suffix.lower() in extensions), key=str)
