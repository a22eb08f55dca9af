"""A clip can be turned into every other kind of video file and keeps its length, speed and colours."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from musubi_backend.errors import UserError
from musubi_backend.inference.video_file import read_images, write_mp4
from musubi_backend.tools.video_convert import convert

COLOURS = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [200, 120, 40]], dtype=np.uint8)


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    return write_mp4(tmp_path / "clip.mp4", np.broadcast_to(COLOURS[:, None, None, :], (4, 32, 48, 3)).copy(), 10)


@pytest.mark.parametrize("ending", ["mp4", "webm", "gif"])
def test_length_speed_and_colours_stay(clip: Path, tmp_path: Path, ending: str) -> None:
    images, rate = read_images(convert(clip, tmp_path / f"new/out.{ending}"))
    assert (len(images), rate, images[0].shape) == (4, 10, (32, 48, 3))
    assert np.abs(np.stack(images)[:, 8, 8].astype(int) - COLOURS).max() <= 16


def test_to_images_and_back_with_another_speed(clip: Path, tmp_path: Path) -> None:
    folder = convert(clip, tmp_path / "frames", "png")
    assert [path.name for path in sorted(folder.iterdir())] == [f"frames_{i:03d}.png" for i in range(4)]
    images, rate = read_images(convert(folder, tmp_path / "back.mp4", fps=24))
    assert (len(images), rate) == (4, Fraction(24))


def test_what_cannot_be_converted_is_rejected(clip: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="choose one of mp4, webm, gif, png"):
        convert(clip, tmp_path / "out.avi")
    with pytest.raises(UserError, match="does not exist"):
        convert(tmp_path / "missing.mp4", tmp_path / "out.gif")
    (tmp_path / "broken.mp4").write_bytes(clip.read_bytes()[:200])
    with pytest.raises(UserError, match="cut off"):
        convert(tmp_path / "broken.mp4", tmp_path / "out.gif")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="without images"):
        convert(tmp_path / "empty", tmp_path / "out.gif")
    folder = convert(clip, tmp_path / "frames", "png")
    (folder / "frames_002.png").write_bytes(b"not an image")
    with pytest.raises(UserError, match=r"frames_002\.png: this is not an image"):
        convert(folder, tmp_path / "out.gif")
