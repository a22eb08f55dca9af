"""How many frames a clip has and when they are shown, as a decoder gives them: the packets of a file are not its frames.

Packets are counted where nothing speaks against it. Where something does, frames are decoded to count them, and the result is kept next to
the caches: VP8 has packets that are never shown, a stream cut without encoding it anew begins with images that cannot be decoded, and
containers without sample tables may hold half images or several in one packet.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from . import clip_lengths
from .clips import ClipFrame, frames_of, frames_of_folder, open_video
from .frames import resampled, resampled_count
from .media import is_animation
from .problems import UnusableMedium

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.stream import VideoStream

_SAMPLE_TABLES = ("mov", "matroska")
_REORDERED = 32  # packets read beyond those needed: no codec shows a frame later than that
_INSTANT = 1e-6  # seconds


@dataclass(frozen=True)
class Timing:
    """When the frames of a clip are shown.

    frames     how many there are, or at least as many as were asked for
    seconds    from the first frame to the last of them
    variable   is each shown for another time?
    """

    frames: int
    seconds: float = 0.0
    variable: bool = False


@dataclass(frozen=True)
class Rate:
    """Which frames of a clip are taken. source: what the dataset file says, None takes every frame; target: of the model; limit: how
    many at most, None for all."""

    source: float | None = None
    target: float = 16.0
    limit: int | None = None

    @property
    def enough(self) -> int | None:
        """So many frames of the file decide everything; None for all."""
        if self.limit is None:
            return None
        return math.ceil(self.limit * max(1.0, (self.source or 0) / self.target)) + 1

    def count(self, timing: Timing) -> int:
        """How many frames are taken."""
        if self._by_time(timing):
            held = int((timing.seconds + _INSTANT) * self.target) + 1
            return held if self.limit is None else min(held, self.limit)
        return resampled_count(timing.frames, self.source, self.target, self.limit)

    def taken(self, frames: Iterable[ClipFrame], timing: Timing) -> Iterator[ClipFrame]:
        """The frames that are taken, in order. Of a clip with a variable rate the frame that is shown at each instant."""
        if self._by_time(timing):
            return islice(_held(frames, self.target), self.count(timing))
        return (frame for keep, frame in zip(resampled(self.source, self.target, self.limit), frames, strict=False) if keep)

    def _by_time(self, timing: Timing) -> bool:
        return self.source is not None and timing.variable


EVERY_FRAME = Rate()


def timing_of(path: Path, rate: Rate = EVERY_FRAME, folder: Path | None = None) -> Timing:
    """The timing of a clip. folder: where lengths that had to be found by decoding are kept. UnusableMedium."""
    if path.is_dir():
        return Timing(len(frames_of_folder(path)))
    known = clip_lengths.recall(folder, path)
    if known is not None:
        return Timing(*known)
    times, trusted = list[float | None](), False
    if not is_animation(path):
        with open_video(path) as (container, stream):
            times, trusted = _packets(container, stream, rate.enough)
    timing = _of_times(times) if trusted else decoded_timing(path, rate.enough, folder)
    if timing.variable and rate.source is not None and rate.enough is not None:
        return timing_of(path, Rate(rate.source, rate.target), folder)  # the limit counts instants then, not frames
    return timing


def decoded_timing(path: Path, enough: int | None = None, folder: Path | None = None) -> Timing:
    """The timing found by decoding; kept in `folder` when the whole clip was. UnusableMedium."""
    with closing(frames_of(path)) as frames:
        times = [frame.time for frame in islice(frames, enough)]
    if not times:
        raise UnusableMedium(path, "not a single frame could be decoded")
    timing = _of_times(times)
    if enough is None or len(times) < enough:
        clip_lengths.remember(folder, path, (timing.frames, timing.seconds, timing.variable))
    return timing


def _packets(container: InputContainer, stream: VideoStream, enough: int | None) -> tuple[list[float | None], bool]:
    """The times of the packets in the order of showing, and whether each of them is one frame."""
    trusted = container.format.name.startswith(_SAMPLE_TABLES)
    times: list[float | None] = []
    hidden_possible = stream.codec_context.name == "vp8"
    for packet in islice((packet for packet in container.demux(stream) if packet.size), None if enough is None else enough + _REORDERED):
        first = not times
        time = None if packet.pts is None else float(packet.pts * packet.time_base)
        trusted &= time is not None and not packet.is_corrupt and not packet.is_discard and (packet.is_keyframe or not first)
        trusted &= not (hidden_possible and not bytes(packet)[0] & 0x10)  # RFC 6386, 9.1: show_frame
        trusted &= first or time is None or times[0] is None or time > times[0]  # shown before the first keyframe: it leans on lost ones
        times.append(time)
        if not trusted:
            return times, False
    shown = sorted(time for time in times if time is not None)
    return [*shown[:enough]], trusted and bool(shown) and len(set(shown)) == len(shown)


def _of_times(times: Sequence[float | None]) -> Timing:
    known = [time for time in times if time is not None]
    if len(known) < len(times) or not known:
        return Timing(len(times))
    steps = [known[number] - known[number - 1] for number in range(1, len(known))]
    usual = statistics.median(steps) if steps else 0.0
    variable = any(not 0.5 * usual - 0.002 < step < 1.5 * usual + 0.002 for step in steps)
    return Timing(len(times), known[-1] - known[0], variable)


def _held(frames: Iterable[ClipFrame], fps: float) -> Generator[ClipFrame, None, None]:
    """The frame shown at 0, 1/fps, 2/fps, ... seconds; the last one as long as asked for."""
    start, number = None, 0
    previous: ClipFrame | None = None
    for frame in frames:
        assert frame.time is not None  # of a clip with a variable rate all have one
        start = frame.time if start is None else start
        while previous is not None and number / fps < frame.time - start - _INSTANT:
            yield previous
            number += 1
        previous = frame
    while previous is not None:
        yield previous
