"""A tiny FramePack and datasets for it, as files a user has."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from musubi_backend.__main__ import main
from musubi_backend.demo.models import write_models
from musubi_backend.inference.video_file import write_mp4
from PIL import Image

WINDOW = 2
"""Latent frames of a section in these tests, 8 frames; the real one has 9."""
SIZE = 32

Tool = Callable[..., None]


@pytest.fixture(scope="session")
def framepack(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_models(tmp_path_factory.mktemp("framepack"), kind="fp")


@pytest.fixture(scope="session")
def flags(framepack: dict[str, Path]) -> Callable[..., list[str]]:
    """The command line's words for some parts of the model."""

    def of(*parts: str) -> list[str]:
        return [word for part in parts for word in (f"--{part}", str(framepack[part]))]

    return of


@pytest.fixture(scope="session")
def tool() -> Tool:
    """Runs a tool that must succeed."""

    def run(*words: object) -> None:
        assert main([str(word) for word in words]) == 0

    return run


def _image(seed: int, frames: int = 1) -> np.ndarray:
    """uint8 [frames, SIZE, SIZE, 3]: a coloured slope that grows lighter."""
    generator = np.random.default_rng(seed)
    time, height, width = np.meshgrid(np.linspace(0, 1, frames), np.linspace(0, 1, SIZE), np.linspace(0, 1, SIZE), indexing="ij")
    light = 0.6 + 0.2 * time + 0.2 * (width - height)
    return (light[..., None] * generator.uniform(60, 230, 3)).clip(0, 255).astype(np.uint8)


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    """A dataset file with two clips of 17 frames: two sections each."""
    folder = tmp_path / "clips"
    for number in range(2):
        write_mp4(folder / f"clip_{number}.mp4", _image(number, 17), fps=30)
        (folder / f"clip_{number}.txt").write_text(f"a slope of colour {number}", encoding="utf-8")
    path = tmp_path / "clips.toml"
    path.write_text(
        f"[general]\nresolution = [{SIZE}, {SIZE}]\ncaption_extension = '.txt'\n[[datasets]]\nvideo_directory = '{folder}'\n"
        f"cache_directory = '{tmp_path / 'cache'}'\ntarget_frames = [17]\nfp_latent_window_size = {WINDOW}\n",
        encoding="utf-8",
    )
    return path


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A dataset file with two images and a control image for each."""
    for number in range(2):
        for folder, seed in (("images", number), ("controls", 10 + number)):
            (tmp_path / folder).mkdir(exist_ok=True)
            Image.fromarray(_image(seed)[0]).save(tmp_path / folder / f"image_{number}.png")
        (tmp_path / "images" / f"image_{number}.txt").write_text(f"a slope of colour {number}", encoding="utf-8")
    path = tmp_path / "images.toml"
    path.write_text(
        f"[general]\nresolution = [{SIZE}, {SIZE}]\ncaption_extension = '.txt'\nbatch_size = 2\n[[datasets]]\n"
        f"image_directory = '{tmp_path / 'images'}'\ncontrol_directory = '{tmp_path / 'controls'}'\n"
        f"cache_directory = '{tmp_path / 'cache'}'\n"
        f"fp_1f_clean_indices = [0]\nfp_1f_target_index = 1\nfp_latent_window_size = {WINDOW}\n",
        encoding="utf-8",
    )
    return path


@pytest.fixture
def start_image(tmp_path: Path) -> Path:
    path = tmp_path / "start.png"
    Image.fromarray(_image(3)[0]).save(path)
    return path
