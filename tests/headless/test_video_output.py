"""Saving a video in every format, with the real converter."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest


@pytest.fixture
def host(part: Any, tmp_path: Path, backend_python: str) -> Any:
    (tmp_path / "config.json").write_text(json.dumps({"interpreter": backend_python}), encoding="utf-8")
    return part("headless.terminal").TerminalHost(tmp_path)


@pytest.fixture
def clip(tmp_path: Path) -> Any:
    """A function that makes a clip of so many frames."""

    def make(frames: int) -> str:
        code = (
            "import sys, numpy\n"
            "from musubi_backend.inference.video_file import write_mp4\n"
            f"write_mp4(sys.argv[1], [numpy.full((16, 32, 3), 10 * n, numpy.uint8) for n in range({frames})], 8)\n"
        )
        backend = Path(__file__).resolve().parents[2] / "backend"
        path = tmp_path / "a clip 猫.mp4"
        subprocess.run([sys.executable, "-c", f"import sys; sys.path.insert(0, {str(backend)!r})\n{code}", str(path)], check=True)
        return str(path)

    return make


def save(part: Any, host: Any, **inputs: Any) -> Any:
    node = part("nodes.video").VideoOutput()
    return asyncio.run(node.run(host, **part("nodes.checks").complete(node.spec, inputs)))


@pytest.mark.parametrize(
    ("kind", "name"), [("mp4", "猫_00001.mp4"), ("webm", "猫_00001.webm"), ("gif", "猫_00001.gif"), ("png", "猫_00001")]
)
def test_every_format_is_written_below_the_output_folder(part: Any, host: Any, clip: Any, kind: str, name: str) -> None:
    result = save(part, host, video=clip(5), filename_prefix="sub folder/猫", format=kind)
    assert Path(result.values[0]) == host.output_dir / "sub folder" / name
    assert all(path.stat().st_size > 0 for path in result.shown)
    assert len(result.shown) == (5 if kind == "png" else 1)


def test_nothing_is_overwritten(part: Any, host: Any, clip: Any) -> None:
    video = clip(1)
    names = [Path(save(part, host, video=video, filename_prefix="x", format="png").values[0]).name for _ in range(2)]
    names.append(Path(save(part, host, video=video, filename_prefix="x", format="mp4").values[0]).name)
    names.append(Path(save(part, host, video=video, filename_prefix="x", format="mp4").values[0]).name)
    assert names == ["x_00001_000.png", "x_00002_000.png", "x_00001.mp4", "x_00002.mp4"]


def test_two_at_the_same_time_get_a_name_each(part: Any, host: Any, clip: Any) -> None:
    node, video = part("nodes.video").VideoOutput(), clip(2)
    inputs = part("nodes.checks").complete(node.spec, {"video": video, "filename_prefix": "x", "format": "gif"})

    async def both() -> list[Any]:
        return await asyncio.gather(node.run(host, **inputs), node.run(host, **inputs))

    assert {Path(result.values[0]).name for result in asyncio.run(both())} == {"x_00001.gif", "x_00002.gif"}


@pytest.mark.parametrize("kind", ["mp4", "webm"])
def test_a_copy_says_nothing_where_the_host_keeps_no_metadata(part: Any, host: Any, tmp_path: Path, kind: str) -> None:
    """As with ComfyUI's --disable-metadata; sound and images are those of the file."""
    source = tmp_path / f"foreign.{kind}"
    with av.open(str(source), "w", options={"movflags": "use_metadata_tags"} if kind == "mp4" else {}) as container:
        container.metadata["prompt"] = container.metadata["comment"] = "a secret"
        stream = container.add_stream("libx264" if kind == "mp4" else "libvpx-vp9", 8)
        stream.width = stream.height = 32
        sound = container.add_stream("aac" if kind == "mp4" else "libopus", 48000)
        stream.metadata["title"] = "a secret"
        images = [av.VideoFrame.from_ndarray(np.full((32, 32, 3), 20 * n, np.uint8)) for n in range(5)]
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 960), np.float32), "flt", "mono")
        silence.sample_rate, silence.pts = 48000, 0
        for packet in [packet for frame in (*images, None) for packet in stream.encode(frame)]:
            container.mux(packet)
        for packet in [packet for frame in (silence, None) for packet in sound.encode(frame)]:
            container.mux(packet)
    assert Path(save(part, host, video=str(source), format=kind, filename_prefix="x").values[0]).read_bytes() == source.read_bytes()
    host.keeps_metadata = False
    saved = Path(save(part, host, video=str(source), format=kind, filename_prefix="x").values[0])
    assert b"a secret" in source.read_bytes() and b"a secret" not in saved.read_bytes()
    decoded = [[frame.to_ndarray() for frame in av.open(str(path)).decode(video=0)] for path in (source, saved)]
    assert len(decoded[0]) == 5 and all(np.array_equal(one, other) for one, other in zip(*decoded, strict=True))
    with av.open(str(saved)) as container:
        assert [stream.type for stream in container.streams] == ["video", "audio"]
