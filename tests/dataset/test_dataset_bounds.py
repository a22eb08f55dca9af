"""Numbers in a dataset file that would take all time or memory are rejected; large ones that people use are not."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from musubi_backend.errors import UserError


@pytest.mark.parametrize(
    ("key", "kind"),
    [
        ("resolution", "image"), ("batch_size", "image"), ("num_repeats", "image"), ("fp_latent_window_size", "video"),
        ("fp_1f_target_index", "image"), ("max_frames", "video"), ("frame_stride", "video"), ("frame_sample", "video"),
        ("source_fps", "video"), ("control_resolution", "image"),
    ],
)  # fmt: skip
def test_absurd_numbers_are_rejected_by_name(make: SimpleNamespace, tmp_path: Path, key: str, kind: str) -> None:
    with pytest.raises(UserError, match=rf"datasets\[0\]: {key} is .* at most"):
        make.config(tmp_path, f"{kind}_directory = '{tmp_path}'\n{key} = 1000000000", general="")


@pytest.mark.parametrize("text", ["target_frames = [1, 1000000001]", "resolution = [64, 1000000]", "control_resolution = [1000000, 64]"])
def test_absurd_numbers_in_lists_are_rejected(make: SimpleNamespace, tmp_path: Path, text: str) -> None:
    kind = "video" if "frames" in text else "image"
    with pytest.raises(UserError, match="at most"):
        make.config(tmp_path, f"{kind}_directory = '{tmp_path}'\n{text}", general="")


def test_large_numbers_in_use_pass(make: SimpleNamespace, tmp_path: Path) -> None:
    section = f"video_directory = '{tmp_path}'\nresolution = [4096, 2304]\nnum_repeats = 1000\ntarget_frames = [257]\nmax_frames = 1000"
    (read,) = make.config(tmp_path, section, general="batch_size = 64").datasets
    assert (read.resolution, read.num_repeats, read.target_frames, read.max_frames, read.batch_size) == (
        (4096, 2304),
        1000,
        (257,),
        1000,
        64,
    )
