"""Sizes that a weight file says in its metadata."""

from __future__ import annotations

import json

import pytest
from musubi_backend.architectures.framepack.geometry import FramePackGeometry
from musubi_backend.architectures.hunyuan_video.geometry import HunyuanGeometry
from musubi_backend.architectures.wan.geometry import WanGeometry
from musubi_backend.errors import UserError
from musubi_backend.weights.geometry import StoredGeometry

GEOMETRIES = [
    WanGeometry(24, 3, 40, 2),
    HunyuanGeometry(24, 3, 40, 2, 2, rope_widths=(4, 2, 2)),
    FramePackGeometry(24, 3, 40, 2, 2, rope_widths=(4, 2, 2)),
]


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_sizes_come_back_from_metadata(geometry: StoredGeometry) -> None:
    assert type(geometry).from_json(geometry.to_json()) == geometry


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("text", ["", "[1, 2]", "3", json.dumps({"dim": 24}), json.dumps({"unknown": 1})])
def test_other_metadata_is_rejected_in_words(geometry: StoredGeometry, text: str) -> None:
    with pytest.raises(UserError, match="musubi_geometry of the weight file is not understood"):
        type(geometry).from_json(text)
