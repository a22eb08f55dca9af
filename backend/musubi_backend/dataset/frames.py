"""Which frames of a clip become training samples. Pure functions on frame counts, equal to musubi-tuner's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

MODES = ("head", "chunk", "slide", "uniform", "full")
STRIDE = 4  # the video VAEs compress time by 4 and keep the first frame: 4n+1 frames


@dataclass(frozen=True)
class FrameRules:
    """How windows are cut from a clip; the values of a video dataset."""

    mode: str = "head"
    targets: tuple[int, ...] = (1,)
    stride: int = 1
    samples: int = 1
    max_frames: int = 129

    @property
    def effective_mode(self) -> str:
        """uniform with one sample is head."""
        return "head" if self.mode == "uniform" and self.samples == 1 else self.mode

    @property
    def limit(self) -> int | None:
        """No frame at or after this index is ever needed; None: the whole clip is."""
        if self.effective_mode == "head":
            return max(self.targets)
        return self.max_frames if self.effective_mode == "full" else None


def round_targets(targets: Sequence[int], stride: int = STRIDE) -> tuple[int, ...]:
    """Distinct targets, each rounded down to `stride * n + 1`, in rising order."""
    return tuple(sorted({round_down(frames, stride) for frames in targets}))


def round_down(frames: int, stride: int = STRIDE) -> int:
    return (frames - 1) // stride * stride + 1


def windows(count: int, rules: FrameRules) -> list[tuple[int, int]]:
    """(start, length) of every window of a clip of `count` frames, in musubi-tuner's order; a start may come twice with uniform.

    `rules.targets` must have been rounded. A clip shorter than a target gives no window for it.
    """
    if count < 1:
        return []
    mode = rules.effective_mode
    if mode == "full":
        return [(0, round_down(min(count, rules.max_frames)))]
    return [(start, length) for length in rules.targets if length <= count for start in _starts(mode, count, length, rules)]


def _starts(mode: str, count: int, length: int, rules: FrameRules) -> list[int]:
    last = count - length
    if mode == "head":
        return [0]
    if mode == "chunk":
        return list(range(0, last + 1, length))
    if mode == "slide":
        return list(range(0, last + 1, rules.stride))
    if mode == "uniform":
        step = last / (rules.samples - 1)
        return [last if n == rules.samples - 1 else int(n * step) for n in range(rules.samples)]
    raise ValueError(f"unknown frame_extraction {mode!r}; known: {', '.join(MODES)}")


def resampled(source_fps: float | None, target_fps: float, limit: int | None = None) -> Iterator[bool]:
    """For frame 0, 1, 2, ... of a clip: is it kept? Ends where nothing more is needed.

    Frame i belongs to index int(i * target / source) of the new clip and is kept when that index is a new one, so faster clips
    lose frames and slower clips keep all of theirs (their indices jump: never duplicated). `limit` counts new indices. The
    position is summed up step by step, as musubi-tuner does: the rounding is part of the result.
    """
    step = 1.0 if source_fps is None else target_fps / source_fps
    position, previous = 0.0, -1
    while True:
        index = int(position)
        if limit is not None and index >= limit:
            return
        yield index != previous
        previous = index
        position += step


def resampled_count(count: int, source_fps: float | None, target_fps: float, limit: int | None = None) -> int:
    """How many of `count` frames `resampled` keeps."""
    return sum(keep for _, keep in zip(range(count), resampled(source_fps, target_fps, limit), strict=False))
