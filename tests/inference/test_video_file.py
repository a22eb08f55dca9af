"""Video and image files hold the right colours in the right order, whole or not at all."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
import torch
from musubi_backend.errors import UserError
from musubi_backend.inference.video_file import to_images, write_mp4, write_pngs
from PIL import Image

COLOURS = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255], [0, 0, 0], [200, 120, 40]], dtype=np.uint8)


def _colour_video(height: int = 32, width: int = 48) -> np.ndarray:
    return np.broadcast_to(COLOURS[:, None, None, :], (len(COLOURS), height, width, 3)).copy()


def _read(path: Path) -> np.ndarray:
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def test_floats_become_bytes_in_rgb_order_and_are_clamped() -> None:
    video = torch.zeros(3, 2, 1, 1)
    video[:, 0, 0, 0] = torch.tensor([-0.5, 0.5, 1.5])
    video[:, 1, 0, 0] = torch.tensor([1.0, 0.999, 0.0])
    assert to_images(video).tolist() == [[[[0, 127, 255]]], [[[255, 254, 0]]]]
    assert to_images(video.bfloat16()).dtype == np.uint8


def test_colours_survive_the_mp4(tmp_path: Path) -> None:
    images = _colour_video()
    decoded = _read(write_mp4(tmp_path / "new folder" / "a 'b'.mp4", images, fps=16))
    assert decoded.shape == images.shape
    # yuv420p in limited range rounds each channel by a few steps; swapped channels or a wrong range are off by 50 and more
    assert np.abs(decoded.astype(int) - images).max() <= 12


def test_stream_is_what_musubi_writes(tmp_path: Path) -> None:
    path = write_mp4(tmp_path / "a.mp4", _colour_video(), fps=24)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.pix_fmt, stream.average_rate, stream.frames) == ("h264", "yuv420p", 24, len(COLOURS))


@pytest.mark.parametrize(("height", "width"), [(31, 47), (31, 48), (1, 1), (2, 16)])
def test_odd_sides_are_padded_not_cut(tmp_path: Path, height: int, width: int) -> None:
    decoded = _read(write_mp4(tmp_path / "a.mp4", _colour_video(height, width), fps=16))
    assert decoded.shape[1:3] == (height + height % 2, width + width % 2)
    assert np.abs(decoded[:, :height, :width].astype(int) - _colour_video(height, width)).max() <= 12


def test_metadata_is_in_the_files_only_when_given(tmp_path: Path) -> None:
    reported = {"prompt": "犬 が 走る; a=b\n\\x", "seeds": "42"}
    with av.open(str(write_mp4(tmp_path / "with.mp4", _colour_video(), 16, reported))) as container:
        assert {key: container.metadata[key] for key in reported} == reported
    with av.open(str(write_mp4(tmp_path / "without.mp4", _colour_video(), 16))) as container:
        assert not set(reported) & set(container.metadata)
    assert Image.open(write_pngs(tmp_path, "with", _colour_video()[:1], reported)[0]).text == reported
    assert Image.open(write_pngs(tmp_path, "without", _colour_video()[:1])[0]).text == {}


def test_png_names_and_pixels(tmp_path: Path) -> None:
    images = _colour_video()
    several = write_pngs(tmp_path, "clip", images)
    assert [path.relative_to(tmp_path).as_posix() for path in several] == [f"clip/clip_{i:03d}.png" for i in range(len(images))]
    assert np.array_equal(np.stack([np.asarray(Image.open(path)) for path in several]), images)
    assert write_pngs(tmp_path, "one", images[:1]) == [tmp_path / "one_000.png"]


def test_a_failure_leaves_no_file(tmp_path: Path) -> None:
    images = [_colour_video()[0], np.zeros((3, 3), dtype=np.uint8)]  # the second image is not RGB
    with pytest.raises((ValueError, av.FFmpegError)):
        write_mp4(tmp_path / "a.mp4", images, 16)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UserError, match="at least one image"):
        write_mp4(tmp_path / "a.mp4", [], 16)
