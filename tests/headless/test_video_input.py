"""Loading frames of a video: which ones, as what, and what is rejected."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from musubi_backend.inference.video_file import read_images, write_mp4, write_pngs

FRAMES, FPS = 30, 10


@pytest.fixture
def host(part: Any, tmp_path: Path) -> Any:
    host = part("headless.terminal").TerminalHost(tmp_path)
    host.input_dir.mkdir()
    images = [np.full((16, 32, 3), 8 * number, np.uint8) for number in range(FRAMES)]
    write_mp4(host.input_dir / "clip 猫.mp4", images, FPS)
    write_pngs(host.input_dir, "folder", images[:5])
    return host


def load(part: Any, host: Any, **inputs: Any) -> Any:
    node = part("nodes.video").VideoInput()
    return asyncio.run(node.run(host, **part("nodes.checks").prepared(node, host, inputs)))


def numbers(folder: str) -> list[int]:
    """Which frames the images in a folder (or a single file) are, reported by their brightness."""
    files = sorted(Path(folder).glob("*.png")) if Path(folder).is_dir() else [Path(folder)]
    return [round(float(read_images(file)[0][0].mean()) / 8) for file in files]


@pytest.mark.parametrize(
    ("selection", "expected", "fps"),
    [
        ({}, list(range(FRAMES)), FPS),
        ({"start": 4, "count": 3}, [4, 5, 6], FPS),
        ({"start": 1, "stride": 10}, [1, 11, 21], 1),
        ({"fps": 5.0, "count": 4}, [0, 2, 4, 6], 5),
        ({"fps": 5.0, "start": 2, "count": 2, "stride": 3}, [4, 10], 5 / 3),
        ({"fps": 20.0, "count": 4}, [0, 0, 1, 1], 20),
        ({"start": 28, "count": 9}, [28, 29], FPS),
        ({"start": 29, "count": 1}, [29], FPS),
    ],
)
def test_the_frames_asked_for_come(part: Any, host: Any, selection: dict[str, Any], expected: list[int], fps: float) -> None:
    frames, video, count, rate = load(part, host, path="clip 猫.mp4", **selection).values
    assert numbers(frames) == expected
    assert count == len(expected)
    assert rate == pytest.approx(fps)
    images, found = read_images(video)
    assert len(images) == count and float(found) == pytest.approx(fps)


def test_a_chosen_file_and_a_folder_of_images_load_too(part: Any, host: Any) -> None:
    assert load(part, host, file="clip 猫.mp4", count=2).values[2] == 2
    assert numbers(load(part, host, path="folder").values[0]) == [0, 1, 2, 3, 4]


def test_what_is_not_there_or_not_allowed_is_rejected(part: Any, host: Any, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no video")
    error = part("backend.musubi_backend.errors").UserError
    for inputs, words in (
        ({}, "choose a video"),
        ({"path": "/etc/passwd"}, "outside the folders"),
        ({"path": "gone.mp4"}, "does not exist"),
        ({"path": "notes.txt"}, "the video cannot be read"),
        ({"path": "clip 猫.mp4", "start": FRAMES}, "no images in it"),
        ({"file": "other.mp4"}, "does not exist"),
    ):
        with pytest.raises(error, match=words):
            load(part, host, **inputs)


def test_a_changed_video_is_loaded_again(part: Any, host: Any) -> None:
    node = part("nodes.video").VideoInput()
    before = node.fingerprint(host, path="clip 猫.mp4", file="none")
    write_mp4(host.input_dir / "clip 猫.mp4", [np.zeros((16, 16, 3), np.uint8)], FPS)
    assert node.fingerprint(host, path="clip 猫.mp4", file="none") != before
