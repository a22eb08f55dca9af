"""The image of a loss: where its points lie, what is above the other, and what never gets into it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest


def lines(path: Path) -> list[list[tuple[float, float]]]:
    """The points of each line of an image."""
    text = path.read_text(encoding="utf-8")
    return [[tuple(map(float, point.split(","))) for point in line.split()] for line in re.findall(r'points="([^"]*)"', text)]  # type: ignore[misc]


def test_the_first_point_is_left_and_the_largest_loss_on_top(part: Any, tmp_path: Path) -> None:
    part("nodes.loss_curve").write_image(tmp_path / "loss.svg", {1: 4.0, 2: 2.0, 3: 3.0}, "cat <1> & dog")
    plain, smooth = lines(tmp_path / "loss.svg")
    assert plain == [(44.0, 44.0), (320.0, 276.0), (596.0, 160.0)]
    means = [4.0, 0.95 * 4.0 + 0.05 * 2.0]
    means.append(0.95 * means[1] + 0.05 * 3.0)
    assert [y for _, y in smooth] == pytest.approx([276 - 232 * (mean - 2) / 2 for mean in means], abs=0.06)
    text = (tmp_path / "loss.svg").read_text(encoding="utf-8")
    assert "cat &lt;1&gt; &amp; dog: loss over 3 steps" in text and ">4</text>" in text and ">2</text>" in text


@pytest.mark.parametrize(
    ("losses", "kept"),
    [
        ([], [0.0, 1e-6]),
        ([0.5], [0.5, 0.5 + 1e-6]),
        ([2.0, 2.0, 2.0], [2.0, 2.0, 2.0, 2.000002]),
        ([float("inf"), 1.0, float("nan"), 3.0], [1.0, 3.0]),
        ([-100.0], [-100.0, -99.9999]),
    ],
)
def test_there_are_always_two_finite_values(part: Any, tmp_path: Path, losses: list[float], kept: list[float]) -> None:
    assert part("nodes.loss_curve").loss_map(losses)["loss"] == pytest.approx(kept, rel=1e-9)
    part("nodes.loss_curve").write_image(tmp_path / "loss.svg", dict(enumerate(losses)), "x")
    assert all(0 <= y <= 320 for line in lines(tmp_path / "loss.svg") for _, y in line)


def test_the_validation_losses_lie_at_their_steps_and_the_lowest_is_marked(part: Any, tmp_path: Path) -> None:
    validation = {0: 6.0, 2: 1.0, 3: 5.0, 4: float("nan")}
    part("nodes.loss_curve").write_image(tmp_path / "loss.svg", {1: 4.0, 2: 2.0, 3: 3.0}, "x", validation)
    assert lines(tmp_path / "loss.svg")[2] == [(44.0, 44.0), (320.0, 276.0), (596.0, 90.4)], "6 is on top, 1 below, nan is nowhere"
    text = (tmp_path / "loss.svg").read_text(encoding="utf-8")
    assert "best 1 at step 2" in text and '<circle cx="320.0" cy="276.0" r="6"' in text


def test_the_image_next_to_the_lora_marks_the_lowest_validation_loss(tmp_path: Path) -> None:
    from musubi_backend.training import charts
    from PIL import Image

    charts.loss_curve(tmp_path / "loss.png", [4.0, 2.0, 3.0], "x", {0: 4.0, 2: 1.0, 3: 3.5})
    with Image.open(tmp_path / "loss.png") as image:
        of_line = [image.getpixel(place) for place in ((510, 440), (80, 40), (510, 432))]
    assert of_line == [(200, 80, 0)] * 3, "the lowest is at the bottom in the middle, in a ring"
