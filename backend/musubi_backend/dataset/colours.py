"""The colours of images as sRGB: by their ICC profile, or by the numbers that say how they are coded (ITU-T H.273: cICP, nclx).

An image whose profile is sRGB under any name keeps its pixels bit for bit.
"""

from __future__ import annotations

import io
import logging
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import tone

if TYPE_CHECKING:
    from PIL.Image import Image

logger = logging.getLogger(__name__)

_HEAD = 1 << 16  # bytes; both lie before the pixels
_SAME = 2  # levels of 255: what rounding makes of sRGB's profiles
_MODES = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}
_KINDS = {"L": "GRAY", "LA": "GRAY", "La": "GRAY", "1": "GRAY", "CMYK": "CMYK"}


@dataclass(frozen=True)
class _Way:
    """How the colours of a profile come to sRGB. mode: the pixels it takes; transform: None where they are sRGB already."""

    name: str
    mode: str
    transform: Any


def coding_of(path: Path, image: Image) -> tuple[int, int]:
    """(colour primaries, transfer characteristics) as numbers of H.273; (2, 2), "unspecified", where the file says nothing."""
    if image.format == "PNG":
        place, length = b"\0\0\0\4cICP", 8
    elif image.format in ("AVIF", "HEIF") and not image.info.get("icc_profile"):
        place, length = b"colrnclx", 8
    else:
        return 2, 2
    with path.open("rb") as file:
        head = file.read(_HEAD)
    start = head.find(place) + length
    numbers = head[start : start + 4]
    if start < length or len(numbers) < 4:
        return 2, 2
    return (numbers[0], numbers[1]) if image.format == "PNG" else (numbers[1], numbers[3])


def colour_notes(path: Path, image: Image) -> tuple[str, ...]:
    """What a person should know about the colours of an image; from its header."""
    notes = tone.notes_of(*coding_of(path, image))
    profile = image.info.get("icc_profile")
    if notes or _is_beyond(image):
        return notes
    if not profile:
        return ("CMYK without a colour profile: its colours are guessed; save it as sRGB",) if image.mode == "CMYK" else ()
    try:
        way = _way(profile, image.mode)
    except ValueError as error:
        return (f"{error}: taken as sRGB",)
    return (f'colour profile "{way.name}": brought to sRGB',) if way.transform else ()


def in_srgb(image: Image, coding: tuple[int, int]) -> Image:
    """A loaded image of 8 bits per colour in sRGB, with its transparency: by its coding (see `coding_of`) where that decides, else by its
    ICC profile; one without a usable profile as it is."""
    from PIL import ImageCms

    profile = image.info.get("icc_profile")
    if _is_beyond(image) or not (tone.notes_of(*coding) or profile):
        return image
    straight = image.convert("LA") if image.mode == "La" else image  # Pillow has no direct way from there
    alpha = straight.convert("RGBA").getchannel("A") if straight.has_transparency_data else None
    if tone.notes_of(*coding):
        shown = _by_coding(straight, coding)
    else:
        try:
            way = _way(profile, image.mode)
            if way.transform is None:
                return image
            converted = ImageCms.applyTransform(straight.convert(way.mode), way.transform)
        except (ValueError, ImageCms.PyCMSError):
            logger.debug("the colour profile cannot be used", exc_info=True)
            return image
        assert converted is not None  # as it is not done in place
        shown = converted
    if alpha is not None:
        shown.putalpha(alpha)
    return shown


def _by_coding(image: Image, coding: tuple[int, int]) -> Image:
    import numpy as np
    from PIL import Image as images

    primaries, transfer = coding
    return images.fromarray(tone.to_standard(np.asarray(image.convert("RGB")).astype(np.uint16) * 257, transfer, primaries))


def _is_beyond(image: Image) -> bool:
    """Pixels that a profile does not describe here: 16 bits and more of grey (depth), and Lab, which Pillow converts itself."""
    return image.mode.startswith("I") or image.mode in ("F", "LAB", "HSV")


@lru_cache(maxsize=16)
def _way(profile: bytes, mode: str) -> _Way:
    """ValueError says what is wrong with the profile."""
    from PIL import Image, ImageCms

    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        kind = source.profile.xcolor_space.strip()
        name = " ".join(ImageCms.getProfileDescription(source).split())[:60] or "without a name"
        own = _KINDS.get(mode, "RGB")
        if kind not in _MODES or (kind != own and not (own == "GRAY" and kind == "RGB")):
            raise ValueError(f'colour profile "{name}" is of other colours than the image')
        taken = _MODES[kind]
        transform = ImageCms.buildTransform(
            source,
            ImageCms.createProfile("sRGB"),
            taken,
            "RGB",
            ImageCms.Intent.RELATIVE_COLORIMETRIC,
            ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
    except (OSError, ImageCms.PyCMSError, TypeError) as error:
        raise ValueError("damaged colour profile") from error
    if taken == "CMYK":
        return _Way(name, taken, transform)
    steps = [*range(0, 256, 17)]
    colours = list(product(steps, repeat=3)) if taken == "RGB" else [(step, step, step) for step in range(256)]
    sample = Image.new("RGB", (len(colours), 1))
    sample.putdata(colours)
    shown = ImageCms.applyTransform(sample.convert(taken), transform)
    assert shown is not None
    off = max(abs(one - other) for one, other in zip(sample.tobytes(), shown.tobytes(), strict=True))
    return _Way(name, taken, None if off <= _SAME else transform)
