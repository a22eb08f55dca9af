"""Which files are pictures and clips, and reading the captions beside them."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path

IMAGE_EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".avif")
VIDEO_EXTENSIONS = (".mp4", ".webm", ".avi", ".mkv", ".mov", ".flv", ".wmv", ".m4v", ".mpg", ".mpeg")
JXL_PLUGINS = {"pillow_jxl": "pillow_jxl", "jxlpy": "jxlpy.JXLImagePlugin"}  # package -> what registers JPEG XL with Pillow


def image_extensions() -> tuple[str, ...]:
    """Endings of picture files on this machine, in lower case."""
    return (*IMAGE_EXTENSIONS, ".jxl") if any(find_spec(plugin) for plugin in JXL_PLUGINS) else IMAGE_EXTENSIONS


def images_in(folder: Path) -> list[Path]:
    """The pictures of a folder, sorted by path."""
    return _files(folder, image_extensions())


def videos_in(folder: Path) -> list[Path]:
    """The clips of a folder, sorted by path."""
    return _files(folder, VIDEO_EXTENSIONS)


def read_caption(media: Path, extension: str) -> str:
    """The text beside a picture or clip. ValueError says what is wrong with it."""
    path = media.with_name(media.stem + extension)
    try:
        return path.read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        raise ValueError(f"no caption: {path.name} is missing") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"caption {path.name} is not UTF-8 text (byte {error.start}); save it as UTF-8") from None
    except OSError as error:
        raise ValueError(f"caption {path.name} cannot be read: {error.strerror or error}") from None


def _files(folder: Path, extensions: tuple[str, ...]) -> list[Path]:
    names = [entry.name for entry in os.scandir(folder) if not entry.name.startswith(".")]
    return sorted((folder / name for name in names if Path(name).suffix.lower() in extensions), key=str)
