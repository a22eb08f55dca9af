"""Frame windows against those recorded from musubi-tuner: exact equality."""

from __future__ import annotations

import json
from collections import defaultdict
from itertools import compress
from pathlib import Path

import pytest
from musubi_backend.dataset.frames import FrameRules, resampled, resampled_count, round_targets, windows

FPS = {"wan": 16.0, "hv": 24.0, "fp": 30.0}
CLIP_LENGTHS = (1, 4, 5, 13, 20, 25, 33, 40, 81, 100, 140)


def recorded_cases(shared: Path) -> dict[str, dict]:
    return json.loads((shared / "golden/dataset/frame_extraction.json").read_text())


def test_every_recorded_case_gives_the_same_windows_of_the_same_frames(shared: Path) -> None:
    for name, case in recorded_cases(shared).items():
        given, result = case["kw"], case["result"]
        rules = FrameRules(
            given.get("frame_extraction", "head"),
            round_targets(given.get("target_frames", [1])),
            given.get("frame_stride", 1),
            given.get("frame_sample", 1),
            given.get("max_frames", 129),
        )
        if "error" in result:
            with pytest.raises(ValueError, match="unknown frame_extraction 'middle'"):
                windows(10, rules)
            continue
        assert list(rules.targets) == result["target_frames"], name
        assert rules.effective_mode == result["frame_extraction"], name

        expected = defaultdict(list)
        for item in result["items"]:
            frames = item["frames"]
            listed = frames if given.get("source_fps") else list(range(frames[0], frames[1] + 1))
            clip, window = item["item_key"].split("_")
            expected[int(clip[1:])].append((window, listed))

        fps = FPS[name.split(":")[0]]
        for count in CLIP_LENGTHS:
            kept = list(compress(range(count), resampled(given.get("source_fps"), fps, rules.limit)))
            assert resampled_count(count, given.get("source_fps"), fps, rules.limit) == len(kept)
            ours = [(f"{start:05d}-{length:03d}", kept[start : start + length]) for start, length in windows(len(kept), rules)]
            assert sorted(ours) == sorted(expected[count]), (name, count)


def test_a_slower_clip_is_never_stretched() -> None:
    assert resampled_count(50, source_fps=8.0, target_fps=16.0) == 50
    assert resampled_count(50, source_fps=8.0, target_fps=16.0, limit=25) == 13


@pytest.mark.parametrize("mode", ["head", "chunk", "slide", "uniform", "full"])
def test_windows_stay_inside_the_clip(mode: str) -> None:
    rules = FrameRules(mode, round_targets([1, 9, 25]), stride=3, samples=4, max_frames=21)
    for count in range(60):
        assert all(start >= 0 and start + length <= count and length % 4 == 1 for start, length in windows(count, rules))
