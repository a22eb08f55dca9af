"""Opening images, upright, in 8 bits and sRGB; bringing pixels to the size of their bucket, bit for bit as musubi-tuner does."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from ..ordinary import check_ordinary
from .buckets import Size
from .colours import coding_of, colour_notes, in_srgb
from .media import plugins_for, unread_reason
from .problems import UnusableMedium

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

logger = logging.getLogger(__name__)

_ORIENTATION = 0x0112  # Exif 2.32, 4.6.4: 1..8; from 5 on rows and columns change places
_ANIMATED = ("GIF", "WEBP", "PNG", "AVIF")
_PAGED = ("TIFF", "MPO")


@contextmanager
def open_image(path: Path) -> Iterator[Image]:
    """The opened image, not decoded yet. UnusableMedium for what Pillow cannot read, here or in the block."""
    from PIL import Image, UnidentifiedImageError

    try:
        check_ordinary(path)
        for plugin in plugins_for(path):
            plugin.register(import_module(plugin.module))
        with Image.open(path) as image:
            yield image
    except UnusableMedium:
        raise
    except UnidentifiedImageError as error:
        raise UnusableMedium(path, unread_reason(path)) from error
    except Image.DecompressionBombError as error:
        raise UnusableMedium(path, f"the image is too large: {error}") from error
    except Exception as error:  # a damaged file makes Pillow's readers raise nearly anything; it must not cost the other items
        logger.debug("reading %s", path, exc_info=True)
        raise UnusableMedium(path, f"the image cannot be read: {error or type(error).__name__}") from error


def upright_size(image: Image) -> Size:
    """(width, height) as the image is shown, from its header."""
    width, height = image.size
    turned = image.format != "TIFF" and _orientation(image) >= 5  # Pillow turns TIFFs by itself
    return (height, width) if turned else (width, height)


def image_notes(path: Path, image: Image) -> tuple[str, ...]:
    """What a person should know about how this image is read."""
    notes = colour_notes(path, image)
    if image.format in _ANIMATED and getattr(image, "is_animated", False):
        notes += ("animated: only the first frame is taken",)
    if image.format in _PAGED and getattr(image, "n_frames", 1) > 1:
        notes += ("holds several images: only the first is taken",)
    return (*notes, "has transparency: what is transparent is laid on white") if image.has_transparency_data else notes


def read_image(path: Path, *, keep_alpha: bool = False) -> np.ndarray:
    """uint8 [H, W, 3], upright; what is transparent is laid on white. With `keep_alpha` images with transparency become [H, W, 4],
    their colours as they are stored. UnusableMedium."""
    with open_image(path) as image:
        coding = coding_of(path, image)
        return pixels_of(_upright(image), path, coding, keep_alpha=keep_alpha)


def pixels_of(image: Image, path: Path, coding: tuple[int, int], *, keep_alpha: bool = False) -> np.ndarray:
    """As `read_image`, of a loaded image. coding: see `colours.coding_of`."""
    import numpy as np

    if image.mode.startswith("I") or image.mode == "F":
        return _eight_bits(np.asarray(image), image, path)
    shown = in_srgb(image, coding)
    if shown.has_transparency_data:
        straight = shown.convert("LA") if shown.mode == "La" else shown  # Pillow has no direct way from there
        pixels = np.array(straight.convert("RGBA"))
        return pixels if keep_alpha else on_white(pixels)
    return np.array(shown.convert("RGB"))


def on_white(pixels: np.ndarray) -> np.ndarray:
    """uint8 [H, W, 4] with straight alpha -> [H, W, 3], laid on white."""
    import numpy as np

    colours, alpha = pixels[..., :3].astype(np.uint32), pixels[..., 3:].astype(np.uint32)
    return ((colours * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)


def fit(pixels: np.ndarray, bucket: Size) -> np.ndarray:
    """Resize [H, W, C] so that it covers `bucket`, then cut the middle out.

    Enlarging uses Pillow's Lanczos filter, shrinking OpenCV's area average; the right size is left untouched.
    """
    import numpy as np

    height, width = pixels.shape[:2]
    if (width, height) == bucket:
        return pixels
    scale = max(bucket[0] / width, bucket[1] / height)
    width, height = int(width * scale + 0.5), int(height * scale + 0.5)
    if scale > 1:
        from PIL import Image

        pixels = np.array(Image.fromarray(pixels).resize((width, height), Image.Resampling.LANCZOS))
    else:
        import cv2

        pixels = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA)
    left, top = (width - bucket[0]) // 2, (height - bucket[1]) // 2
    return pixels[top : top + bucket[1], left : left + bucket[0]]


def _orientation(image: Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION) or 1)
    except Exception:  # damaged Exif data in a whole image
        logger.debug("Exif data cannot be read", exc_info=True)
        return 1


def _upright(image: Image) -> Image:
    from PIL import ImageOps

    image.load()  # Pillow turns TIFFs here, and forgets their orientation
    return ImageOps.exif_transpose(image) if _orientation(image) != 1 else image


def _eight_bits(values: np.ndarray, image: Image, path: Path) -> np.ndarray:
    """Grey values of 16 or 32 bits, whole or not, as uint8 [H, W, 3]. Pillow's own conversion cuts them off at 255."""
    import numpy as np

    values = np.nan_to_num(values.astype(np.float64), posinf=np.inf, neginf=0)
    peak = float(values.max(initial=0))
    if image.mode == "F" and peak <= 1:
        scale = 255.0
    elif image.mode.startswith("I;16") or image.format in ("PNG", "PPM"):
        scale = 255 / 65535
    elif peak <= 255:
        scale = 1.0
    elif peak <= 65535:
        scale = 255 / 65535
    elif image.mode == "I":
        scale = 255 / (2**31 - 1)
    else:
        raise UnusableMedium(path, f"its brightness goes up to {peak:g}; save it with values from 0 to 1")
    grey = np.clip(np.rint(values * scale), 0, 255).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=-1)
