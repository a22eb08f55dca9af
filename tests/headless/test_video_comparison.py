"""Videos of different sizes, lengths and speeds come out next to each other."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import numpy as np
from musubi_backend.inference.side_by_side import GAP, TITLE_HEIGHT, side_by_side
from musubi_backend.inference.video_file import read_images, write_mp4

RED, GREEN, BLUE = (200, 0, 0), (0, 200, 0), (0, 0, 200)


def video(colour: tuple[int, int, int], height: int, width: int, frames: int, last: tuple[int, int, int] | None = None) -> np.ndarray:
    made = np.full((frames, height, width, 3), colour, np.uint8)
    made[-1] = last or colour
    return made


def test_a_shorter_video_stays_at_its_last_image_and_all_get_one_height() -> None:
    images = list(side_by_side([video(RED, 32, 32, 2, GREEN), video(BLUE, 64, 32, 5)], ["left", ""], height=64))
    assert len(images) == 5
    assert images[0].shape == (TITLE_HEIGHT + 64 + GAP, GAP + 64 + GAP + 32 + GAP, 3)
    middle = TITLE_HEIGHT + 32
    assert images[0][middle, GAP + 32].tolist() == list(RED) and images[0][middle, GAP + 64 + GAP + 16].tolist() == list(BLUE)
    assert images[4][middle, GAP + 32].tolist() == list(GREEN)
    heading = images[0][:TITLE_HEIGHT]
    assert np.ptp(heading[:, : GAP + 64]) > 100 and np.ptp(heading[:, GAP + 64 + GAP :]) == 0, "a title above the left one only"


def test_the_node_writes_a_video_at_the_speed_of_the_first(part: Any, tmp_path: Path, backend_python: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"interpreter": backend_python}), encoding="utf-8")
    host, node = part("headless.terminal").TerminalHost(tmp_path), part("nodes.video").VideoComparison()
    first = write_mp4(tmp_path / "first.mp4", video(RED, 48, 64, 8), 8)
    second = write_mp4(tmp_path / "second.mp4", video(BLUE, 48, 64, 16), 16)  # as long, at twice the rate
    values = part("nodes.checks").complete(node.spec, {"video_1": str(first), "video_2": str(second), "titles": "one\ntwo\nthree"})
    result = asyncio.run(node.run(host, **values))
    images, rate = read_images(result.values[0])
    assert (len(images), rate) == (8, 8)
    assert result.text.startswith("2 videos")
