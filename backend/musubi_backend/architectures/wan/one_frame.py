"""One-frame tasks: a single target image steered by one or two control images, each with a position in time.

The transformer sees the images as frames of a very short video, in the order of their positions; the target's place holds
the latents of an even grey and a mask of 0, the others their image and a mask of 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

MOST_CONTROLS = 2
_OPTIONS_OF_OTHERS = ("no_2x", "no_4x", "no_post")  # FramePack's; musubi-tuner takes them here too, without effect


@dataclass(frozen=True)
class OneFrame:
    """Positions in time: of the target, and of the control images in their order."""

    target: int
    controls: tuple[int, ...]

    def __post_init__(self) -> None:
        numbers = (self.target, *self.controls)
        if not 1 <= len(self.controls) <= MOST_CONTROLS:
            raise UserError(f"one-frame tasks of Wan take 1 or {MOST_CONTROLS} control images, not {len(self.controls)}")
        if len(set(numbers)) < len(numbers) or min(numbers) < 0:
            raise UserError(f"target {self.target} and controls {', '.join(map(str, self.controls))} must be different positions from 0 up")

    @classmethod
    def parse(cls, text: str) -> OneFrame:
        """From "target_index=1,control_index=0;10". UserError for anything else."""
        target, controls = 0, ""
        for part in filter(None, (part.strip() for part in text.split(","))):
            key, _, value = part.partition("=")
            if key == "target_index" and value.isdecimal():
                target = int(value)
            elif key == "control_index" and all(number.isdecimal() for number in value.split(";")):
                controls = value
            elif part not in _OPTIONS_OF_OTHERS:
                raise UserError(
                    f'one-frame settings "{text}": "{part}" is not understood; give them as "target_index=1,control_index=0;10"'
                )
        if not controls:
            raise UserError(f'one-frame settings "{text}" lack control_index, the positions of the control images; e.g. "control_index=0"')
        return cls(target, tuple(int(number) for number in controls.split(";")))

    @property
    def positions(self) -> list[int]:
        """All positions in the order the transformer sees them."""
        return sorted((self.target, *self.controls))

    @property
    def place(self) -> int:
        """Where among the frames the target is."""
        return self.positions.index(self.target)

    def arranged(self, controls: Sequence[Tensor], target: Tensor) -> Tensor:
        """The frames [C, 1, H, W] of the controls (in their order) and the target -> [C, n, H, W] in the order of the positions."""
        import torch

        frames = dict(zip(self.controls, controls, strict=True)) | {self.target: target}
        return torch.cat([frames[position] for position in self.positions], dim=1)


def condition(settings: OneFrame, controls: Sequence[Tensor], grey: Tensor, masks: Sequence[Tensor | None] = ()) -> Tensor:
    """What the transformer is given besides the noise: [4 + 16, n, H, W], a mask and the latents of each frame.

    controls, grey: latents [16, 1, H, W] of the control images and of an even grey. masks [H, W] in 0..1 per control image:
    where they are 0 the image counts as not given.
    """
    import torch

    given = []
    for index, latents in enumerate(controls):
        mask = masks[index] if index < len(masks) else None
        share = torch.ones_like(latents[:1]) if mask is None else mask.to(latents)[None, None]
        given.append(torch.cat([share.expand(4, -1, -1, -1), share * latents + (1 - share) * grey]))
    return settings.arranged(given, torch.cat([torch.zeros_like(grey[:4]), grey]))
