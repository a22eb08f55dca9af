"""The image of what a training needs: nothing that is written in it is cut or runs into something else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

GB = 1 << 30
PAPER = 255


def pixels(part: Any, path: Path, limit: int | None, title: str) -> Any:
    phases = [
        {"name": "encoding sample prompts", "total": 11 * GB, "parts": {"text encoder": 11 * GB}},
        {"name": "training step", "total": 44 * GB, "parts": {"kept for backward": 6 * GB, "one block at work": 38 * GB}},
        {"name": "optimizer step", "total": 4 * GB, "parts": {"one block at work": 4 * GB}},
    ]
    part("nodes.memory_chart").draw(path, phases, limit, title)
    return np.asarray(Image.open(path).convert("L")).astype(int)


def test_a_long_title_goes_into_further_lines(part: Any, tmp_path: Path) -> None:
    short = pixels(part, tmp_path / "short.png", 6 * GB, "Wan2.1: needs 4 GB")
    words = "Wan2.1: Does not fit: needs 44.4 GB of 6.0 GB: kept for backward 5.4 · one block at work 38.3. Use fewer frames"
    image = pixels(part, tmp_path / "long.png", 6 * GB, words)
    assert (image[:, -8:] == PAPER).all(), "nothing reaches the right edge"
    assert image.shape[0] > short.shape[0]


def test_names_end_before_the_bars_and_totals_can_be_read_where_the_limit_goes_through(part: Any, tmp_path: Path) -> None:
    with_limit = pixels(part, tmp_path / "limit.png", 6 * GB, "x")
    without = pixels(part, tmp_path / "none.png", None, "x")
    start = int(np.argmax((without[:120] < 200).sum(axis=0) > 30))  # the left edge of the first bar
    assert (without[:200, start - 8 : start - 1] == PAPER).all()
    rows = slice(188, 202)  # the total of the last bar, "4.0 GB", which ends before the limit of 6 GB and is written across it
    assert (without[rows] != PAPER).any()
    assert (with_limit[rows, start:] == without[rows, start:]).all()
