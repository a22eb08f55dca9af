"""Small real media for the dataset tests: pans over scikit-image's photo of an astronaut."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
from musubi_backend.architectures.wan.card import CARD
from musubi_backend.dataset.config import DatasetConfig, load_config
from PIL import Image
from skimage import data


def pan(count: int, width: int, height: int) -> list[np.ndarray]:
    photo = data.astronaut()
    return [np.ascontiguousarray(photo[i : i + height, 2 * i : 2 * i + width]) for i in range(count)]


def write_clip(path: Path, count: int = 20, *, size: tuple[int, int] = (64, 48), fps: int = 16, faststart: bool = False) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", options={"movflags": "faststart"} if faststart else {}) as container:
        stream = container.add_stream("libx264", rate=Fraction(fps))
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        for frame in pan(count, *size):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return path


def write_image(path: Path, size: tuple[int, int] = (80, 64), mode: str = "RGB") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(pan(1, *size)[0]).convert(mode)
    if mode == "RGBA":
        image.putalpha(Image.linear_gradient("L").resize(size))
    image.save(path)
    return path


def write_caption(media: Path, text: str = "a pan over a photo") -> None:
    media.with_suffix(".txt").write_text(text, encoding="utf-8")


def write_config(folder: Path, *sections: str, general: str = 'resolution = [64, 48]\ncaption_extension = ".txt"') -> DatasetConfig:
    path = folder / "dataset.toml"
    path.write_text("[general]\n" + general + "".join(f"\n[[datasets]]\n{section}" for section in sections), encoding="utf-8")
    return load_config(path)


@pytest.fixture
def make() -> SimpleNamespace:
    """The builders above, for tests that cannot import this file."""
    functions: list[Callable[..., object]] = [pan, write_clip, write_image, write_caption, write_config]
    return SimpleNamespace(card=CARD, **{function.__name__.removeprefix("write_"): function for function in functions})
