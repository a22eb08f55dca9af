"""Bucket sizes against those recorded from musubi-tuner: exact equality."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from musubi_backend.dataset.buckets import Buckets, best_fit
from musubi_backend.errors import UserError


@pytest.fixture
def recorded(shared: Path) -> list[dict]:
    return json.loads((shared / "golden/dataset/buckets.json").read_text())


def test_every_recorded_size_gets_the_recorded_bucket(recorded: list[dict]) -> None:
    for case in recorded:
        resolution = tuple(case["resolution"])
        step = case.get("steps", 16)
        assert [list(size) for size in Buckets.of(resolution, step=step).sizes] == case["buckets"]
        for key, buckets in {
            "map": Buckets.of(resolution, step=step),
            "map_no_upscale": Buckets.of(resolution, no_upscale=True, step=step),
            "map_disabled": Buckets.of(resolution, enabled=False, no_upscale=True, step=step),
        }.items():
            for width, height, *bucket in case.get(key, []):
                assert list(buckets.choose((width, height))) == bucket, (resolution, key, width, height)


def test_control_sizes_agree_wherever_musubi_gives_one(recorded: list[dict]) -> None:
    compared = 0
    for case in recorded:
        for width, height, *bucket in case.get("calc", []):
            if len(bucket) == 2 and min(bucket) > 0:
                assert list(best_fit((width, height), tuple(case["resolution"]))) == bucket, (case["resolution"], width, height)
                compared += 1
    assert compared > 1500


@given(st.integers(64, 2000), st.integers(64, 2000), st.integers(1, 8000), st.integers(1, 8000))
def test_a_bucket_is_never_larger_than_the_area_and_fits_the_step(width: int, height: int, image_width: int, image_height: int) -> None:
    bucket = Buckets.of((width, height)).choose((image_width, image_height))
    assert bucket[0] % 16 == 0 and bucket[1] % 16 == 0
    assert 0 < bucket[0] * bucket[1] <= width * height


def test_a_resolution_too_small_for_buckets_is_rejected() -> None:
    with pytest.raises(UserError, match="too small for buckets"):
        Buckets.of((20, 20))
