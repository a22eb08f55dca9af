"""How FramePack makes a video of sections (arXiv 2504.12626, github.com/lllyasviel/FramePack).

A section is `window` latent frames. It is predicted next to the start image and a history of 1 + 2 + 16 finished frames, the further
away the coarser. Plain FramePack makes the last section first, so its history lies after the section ("inverted anti-drifting");
F1 makes them in order, so its history lies before. Positions in time are laid out per section:

    plain   start, padding, section, 1, 2, 16         padding: the time between start and section that is not made yet
    F1      start, 16, 2, 1, section

Caches, training and generation all see the same names and layouts: those of musubi-tuner's latent caches.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...errors import UserError
from .cache_forms import FAR, MIDDLE

NEAR = 1
HISTORY = NEAR + MIDDLE + FAR
FRAME_RATE = 30  # what sections are counted in, whatever rate the file plays at
FRAMES_PER_LATENT = 4


@dataclass(frozen=True)
class Section:
    """number: its place in time, from 0; padding: sections between it and the start image (plain FramePack only)."""

    number: int
    padding: int = 0


def count_of(frames: int, window: int) -> int:
    """How many whole sections a clip of 4n+1 frames has behind its first frame."""
    return (frames - 1) // FRAMES_PER_LATENT // window


def count_for_seconds(seconds: float, window: int) -> int:
    """How many sections come closest to a length; at least one."""
    return max(1, round(seconds * FRAME_RATE / (window * FRAMES_PER_LATENT)))


def frames_of(sections: int, window: int) -> int:
    """Frames of a video of so many sections, with the start image."""
    return sections * window * FRAMES_PER_LATENT + 1


def usual_paddings(sections: int) -> list[int]:
    """The paddings in the order sections are made: counting down to 0, long videos spending their middle at 2."""
    if sections <= 4:
        return list(reversed(range(sections)))
    return [3, *[2] * (sections - 3), 1, 0]


def given_paddings(text: str, sections: int) -> list[int]:
    """`--latent_paddings`: numbers for the sections in the order they are made; missing ones are the usual ones, surplus ones are
    left out. UserError when it is no list of whole numbers."""
    try:
        given = [int(part) for part in text.split(",")]
    except ValueError:
        raise UserError(f'--latent_paddings "{text}": give whole numbers separated by commas, for example 3,2,1,0') from None
    if any(padding < 0 for padding in given):
        raise UserError(f'--latent_paddings "{text}": every number must be 0 or more')
    return [*given[:sections], *usual_paddings(sections)[len(given) :]]


def plan(sections: int, f1: bool, paddings: Sequence[int] | None = None) -> list[Section]:
    """The sections in the order they are made."""
    if f1:
        return [Section(number) for number in range(sections)]
    chosen = usual_paddings(sections) if paddings is None else paddings
    return [Section(number, padding) for number, padding in zip(reversed(range(sections)), chosen, strict=True)]


class History:
    """What is finished: the start image and sections, in the order of time, and what the next section is given of it.

    start [C, 1, H, W]. end, of the same shape: an image the video must end with (plain FramePack only).
    """

    def __init__(self, start: Tensor, window: int, f1: bool, end: Tensor | None = None) -> None:
        self.start, self.window, self.f1 = start, window, f1
        channels, _, height, width = start.shape
        nothing = start.new_zeros(channels, HISTORY, height, width)
        if not f1 and end is not None:
            nothing[:, :1] = end
        self.frames = torch.cat([nothing, start], dim=1) if f1 else nothing

    def conditions(self, section: Section) -> dict[str, Tensor]:
        """Under the names of latent caches: clean latents [C, n, H, W] and the times of all frames, int64 [n]."""
        if self.f1:
            far, middle, near = self.frames[:, -HISTORY:].split([FAR, MIDDLE, NEAR], dim=1)
            parts = _times(1, FAR, MIDDLE, NEAR, self.window)
            first, far_at, middle_at, near_at, latent_at = parts
        else:
            near, middle, far = self.frames[:, :HISTORY].split([NEAR, MIDDLE, FAR], dim=1)
            parts = _times(1, section.padding * self.window, self.window, NEAR, MIDDLE, FAR)
            first, _, latent_at, near_at, middle_at, far_at = parts
        return {
            "latent_indices": latent_at,
            "latents_clean": torch.cat([self.start, near], dim=1),
            "clean_latent_indices": torch.cat([first, near_at]),
            "latents_clean_2x": middle,
            "clean_latent_2x_indices": middle_at,
            "latents_clean_4x": far,
            "clean_latent_4x_indices": far_at,
        }

    def add(self, latents: Tensor, section: Section) -> None:
        """A finished section [C, window, H, W], in the order of the plan."""
        if self.f1:
            self.frames = torch.cat([self.frames, latents], dim=1)
            return
        new = torch.cat([self.start, latents], dim=1) if section.number == 0 else latents
        self.frames = torch.cat([new, self.frames], dim=1)

    def finished(self) -> Tensor:
        """All that was made, with the start image once it is joined [C, F, H, W]."""
        made = self.frames.shape[1] - HISTORY
        return self.frames[:, HISTORY:] if self.f1 else self.frames[:, :made]


def cut(latents: Tensor, window: int, f1: bool) -> list[dict[str, Tensor]]:
    """Training data from a clip's latents [C, 1 + n * window, H, W]: per section, in the order of time, its latents under "latents"
    and what generation would tell it of the (here known) others."""
    sections = (latents.shape[1] - 1) // window
    history = History(latents[:, :1], window, f1)
    entries: list[dict[str, Tensor]] = [{}] * sections
    for section in plan(sections, f1):
        target = latents[:, 1 + section.number * window : 1 + (section.number + 1) * window]
        entries[section.number] = {"latents": target, **history.conditions(section)}
        history.add(target, section)
    return entries


def _times(*lengths: int) -> Iterator[Tensor]:
    """Consecutive numbers from 0, cut in pieces."""
    return iter(torch.arange(sum(lengths)).split(list(lengths)))
