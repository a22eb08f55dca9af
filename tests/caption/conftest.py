"""Photographs, a clip and the demo model."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

PHOTOS = ("astronaut", "chelsea", "coffee", "rocket")
SEEN = {  # what the demo model is built to see in them
    "astronaut": "a bright picture in warm colours",
    "chelsea": "a bright picture in warm colours",
    "coffee": "a dark picture in warm colours",
    "rocket": "a dark picture in cold colours",
}


@pytest.fixture(scope="session")
def vl_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo Qwen2.5-VL with its tokenizer beside it."""
    from musubi_backend.demo.models import write_models

    return write_models(tmp_path_factory.mktemp("models"), kind="qwen_vl")["qwen_vl"]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder of four photographs."""
    from PIL import Image
    from skimage import data

    folder = tmp_path / "my photos"
    folder.mkdir()
    for name in PHOTOS:
        Image.fromarray(getattr(data, name)()[..., :3]).resize((168, 112)).save(folder / f"{name}.png")
    return folder


@pytest.fixture
def clip(photos: Path) -> Path:
    """A real clip among the photographs: the camera over a cup of coffee, which is dark and warm."""
    from musubi_backend.demo.clips import write_clips

    made = write_clips(photos.parent / "clips", count=3, frames=17)[2]
    return made.rename(photos / "moving.mp4")


@pytest.fixture
def caption_flags(vl_model: Path) -> Callable[..., list[str]]:
    """The tool's name and flags for a folder."""

    def flags(folder: Path, *more: str) -> list[str]:
        common = ["--model_path", str(vl_model), "--max_size", "112", "--device", "cpu"]
        return ["caption_images_by_qwen_vl", "--image_dir", str(folder), *common, *more]

    return flags


@pytest.fixture
def caption(caption_flags: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs the tool, which must end well; returns what it said."""
    from musubi_backend.__main__ import main

    def run(folder: Path, *flags: str) -> str:
        code = main(caption_flags(folder, *flags))
        said = capsys.readouterr().err
        assert code == 0, said
        return said

    return run


@pytest.fixture
def caption_process(caption_flags: Callable[..., list[str]]) -> Callable[..., subprocess.Popen[str]]:
    """Starts the tool in a process of its own; `env` is added to its environment."""

    def start(folder: Path, *flags: str, env: dict[str, str] | None = None) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "musubi_backend", *caption_flags(folder, *flags)]
        environment = {**os.environ, **(env or {})}
        return subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8", env=environment)

    return start
