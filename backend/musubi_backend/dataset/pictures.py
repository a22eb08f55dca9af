"""Opening pictures and bringing pixels to the size of their bucket, bit for bit as musubi-tuner does."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from .buckets import Size
from .media import JXL_PLUGINS
from .problems import UnusableMedium

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image


@contextmanager
def open_picture(path: Path) -> Iterator[Image]:
    """The opened picture, not decoded yet. UnusableMedium for what Pillow cannot read, here or in the block."""
    from PIL import Image, UnidentifiedImageError

    if path.suffix.lower() == ".jxl":
        for plugin, module in JXL_PLUGINS.items():
            if find_spec(plugin):
                import_module(module)
    try:
        with Image.open(path) as image:
            yield image
    except UnidentifiedImageError as error:
        raise UnusableMedium(path, "this is not a picture, or a damaged one") from error
    except Image.DecompressionBombError as error:
        raise UnusableMedium(path, f"the picture is too large: {error}") from error
    except (OSError, SyntaxError) as error:  # Pillow raises SyntaxError for some broken PNGs
        raise UnusableMedium(path, f"the picture cannot be read: {error}") from error


def read_picture(path: Path, *, keep_alpha: bool = False) -> np.ndarray:
    """uint8 [H, W, 3], or [H, W, 4] for RGBA pictures with `keep_alpha`; every other mode becomes RGB. UnusableMedium."""
    import numpy as np

    with open_picture(path) as image:
        keep = image.mode == "RGB" or (keep_alpha and image.mode == "RGBA")
        return np.array(image if keep else image.convert("RGB"))


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
