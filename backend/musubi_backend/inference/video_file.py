"""Images in, video and image files out, in the form musubi-tuner writes them: mp4 by libx264, yuv420p, 4 Mbit/s; PNG.

What a file was made with (prompt, seed, …) goes into the file: as mp4 tags and as PNG text.
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

from .. import atomic
from ..errors import UserError

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from ..dataset.clips import ClipFrame

    Metadata = Mapping[str, str] | None

BIT_RATE = 4_000_000


def to_images(video: Tensor) -> np.ndarray:
    """float video [3, F, H, W] in 0..1 -> uint8 images [F, H, W, 3]; values outside are clamped, fractions cut off as
    musubi-tuner does."""
    import torch

    images: np.ndarray = (video.float().clamp(0, 1) * 255).to(torch.uint8).permute(1, 2, 3, 0).contiguous().cpu().numpy()
    return images


def write_mp4(path: str | Path, images: np.ndarray | Sequence[np.ndarray], fps: Fraction | int, metadata: Metadata = None) -> Path:
    """Write uint8 RGB images [F, H, W, 3] as one H.264 mp4. Odd sides get one repeated row or column: yuv420p needs even
    ones. The folder is created; the file appears only when complete."""
    return _encode(path, images, fps, metadata, "mp4", "libx264", {"movflags": "use_metadata_tags"})


def write_webm(path: str | Path, images: np.ndarray | Sequence[np.ndarray], fps: Fraction | int, metadata: Metadata = None) -> Path:
    """As `write_mp4`, but VP9 in WebM."""
    return _encode(path, images, fps, metadata, "webm", "libvpx-vp9", {})


def write_gif(path: str | Path, images: np.ndarray | Sequence[np.ndarray], fps: Fraction | int) -> Path:
    """Write an endlessly looping GIF with one palette per image. Its clock ticks 100 times a second."""
    from PIL import Image

    target = _target(path, images)
    first, *others = (Image.fromarray(image) for image in images)
    with atomic.replacing(target) as part:
        first.save(part, format="GIF", save_all=True, append_images=others, duration=float(1000 / fps), loop=0)
    return target


def _encode(
    path: str | Path,
    images: np.ndarray | Sequence[np.ndarray],
    fps: Fraction | int,
    metadata: Metadata,
    container_format: str,
    codec: str,
    options: dict[str, str],
) -> Path:
    import av

    target = _target(path, images)
    height, width = (side + side % 2 for side in images[0].shape[:2])
    encoded = io.BytesIO()  # a few MB; onto a full disk PyAV writes half a file and never closes it
    with av.open(encoded, "w", format=container_format, options=options) as container:
        container.metadata.update(metadata or {})
        stream = container.add_stream(codec, rate=fps)
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = width, height, "yuv420p", BIT_RATE
        for image in images:
            frame = av.VideoFrame.from_ndarray(_padded(image, height, width), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with atomic.replacing(target) as part:
        part.write_bytes(encoded.getbuffer())
    return target


def copy_streams(source: str | Path, target: str | Path) -> None:
    """Copy the images and the sound of a video as they are encoded, and nothing that is written about them. The kind of `target` is
    that of `source`."""
    import av

    kind = Path(source).suffix.removeprefix(".").lower()
    # through a Python file, whose errors on a full disk are raised
    with av.open(str(source)) as given, Path(target).open("wb") as file, av.open(file, "w", format=kind) as copy:
        wanted = [stream for stream in given.streams if stream.type in ("video", "audio")]
        copies = {stream.index: copy.add_stream_from_template(stream) for stream in wanted}
        for packet in given.demux(wanted):
            if packet.dts is None:  # the end of a stream
                continue
            packet.stream = copies[packet.stream.index]
            copy.mux(packet)


def write_pngs(folder: str | Path, name: str, images: np.ndarray | Sequence[np.ndarray], metadata: Metadata = None) -> list[Path]:
    """Write images as `{folder}/{name}/{name}_000.png` and on; a single one as `{folder}/{name}_000.png`."""
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    parent = Path(folder) / name if len(images) > 1 else Path(folder)
    info = PngInfo()
    for key, value in (metadata or {}).items():
        info.add_itxt(key, value)
    written = []
    for index, image in enumerate(images):
        target = _target(parent / f"{name}_{index:03d}.png", images)
        with atomic.replacing(target) as part:
            Image.fromarray(image).save(part, format="PNG", pnginfo=info)
        written.append(target)
    return written


@dataclass(frozen=True)
class Selection:
    """Which images of a video to take. fps: so many per second of it, 0 for all; of those from number `start` on every
    `stride`-th, `count` of them at most, 0 for all."""

    start: int = 0
    count: int = 0
    stride: int = 1
    fps: float = 0.0

    def rate(self, source: Fraction) -> Fraction:
        """Images per second of what is taken."""
        return (Fraction(self.fps).limit_denominator(1000) if self.fps else source) / self.stride

    def numbers(self, source: Fraction) -> Iterator[int]:
        """The numbers of the images to take, ascending; those past the end of the video are simply not there. Where more are asked
        for than the video has, images come more than once."""
        step = source / (self.rate(source) * self.stride)
        for index in range(self.count) if self.count else itertools.count():
            yield int((self.start + index * self.stride) * step)


def read_images(path: str | Path, selection: Selection = Selection()) -> tuple[list[np.ndarray], Fraction]:
    """The uint8 RGB images [H, W, 3] and the frame rate of a video file, or of the images in a folder, 2 before 10 (then at 16 frames
    per second). With `fps` those of a variable rate are taken by their times. UserError where there are none."""
    from ..dataset.clips import frame_rate, frames_of
    from ..dataset.problems import UnusableMedium
    from ..dataset.timing import Rate, timing_of

    source = Path(path)
    if not source.exists():
        raise UserError(f"{source} does not exist")
    try:
        rate = frame_rate(source) or Fraction(16)
        frames: Iterable[ClipFrame] = frames_of(source)
        if selection.fps and (timing := timing_of(source)).variable:
            frames, rate = Rate(float(rate), selection.fps).taken(frames, timing), Fraction(selection.fps).limit_denominator(1000)
        images = _selected(frames, selection.numbers(rate))
    except UnusableMedium as unusable:
        raise UserError(str(unusable.problem)) from None
    if not images:
        raise UserError(f"{source}: no images in it" + (f" from number {selection.start} on" if selection.start else ""))
    return images, selection.rate(rate)


def _selected(frames: Iterable[ClipFrame], numbers: Iterator[int]) -> list[np.ndarray]:
    """The pixels of the frames with these ascending numbers; nothing is read beyond the last."""
    taken: list[np.ndarray] = []
    wanted = next(numbers, None)
    for number, frame in enumerate(frames):
        if wanted == number:
            image = frame.pixels()
            while wanted == number:
                taken.append(image)
                wanted = next(numbers, None)
        if wanted is None:
            break
    return taken


def _padded(image: np.ndarray, height: int, width: int) -> np.ndarray:
    import numpy as np

    missing = ((0, height - image.shape[0]), (0, width - image.shape[1]), (0, 0))
    return np.ascontiguousarray(np.pad(image, missing, mode="edge"))


def _target(path: str | Path, images: np.ndarray | Sequence[np.ndarray]) -> Path:
    """Reject an empty video before anything is made; make the folder."""
    target = Path(path)
    if len(images) == 0:
        raise UserError(f"{target}: a video needs at least one image")
    target.parent.mkdir(parents=True, exist_ok=True)
    return target
