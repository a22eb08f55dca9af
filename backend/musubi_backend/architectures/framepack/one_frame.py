"""One-frame FramePack: a single frame at some time, steered by control images at others.

The layout is musubi-tuner's: control images are clean latents at times of their choice, followed unless `no_post` by an empty frame
after the window; the coarser history is empty (zeros), or left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...errors import UserError
from .cache_forms import FAR, MIDDLE
from .sections import NEAR

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class OneFrame:
    """target: time of the frame that is made; controls: times of the control images, as many as are given; no_2x, no_4x: leave the
    coarser history out; no_post: without the empty frame after the window."""

    target: int
    controls: tuple[int, ...] = ()
    no_2x: bool = False
    no_4x: bool = False
    no_post: bool = False

    @classmethod
    def parse(cls, text: str, window: int, flag: str = "--one_frame_inference") -> OneFrame:
        """From "no_2x,no_4x,no_post,target_index=1,control_index=0;10" or "default". UserError naming `flag` for anything else."""
        target, switches = window, set()
        controls: tuple[int, ...] = ()
        for part in (part.strip() for part in text.split(",") if part.strip()):
            name, _, value = part.partition("=")
            try:
                if name == "target_index":
                    target = int(value)
                elif name == "control_index":
                    controls = tuple(int(index) for index in value.split(";"))
                elif part in ("no_2x", "no_4x", "no_post", "default"):
                    switches.add(part)
                else:
                    raise UserError(f'{flag}: "{part}" is not known; use no_2x, no_4x, no_post, target_index=1, control_index=0;10')
            except ValueError:
                raise UserError(f'{flag}: "{part}": give whole numbers, as in target_index=1,control_index=0;10') from None
        return cls(target, controls, "no_2x" in switches, "no_4x" in switches, "no_post" in switches)

    def conditions(self, controls: Sequence[Tensor], window: int) -> dict[str, Tensor]:
        """Under the names of latent caches, for control images [C, 1, H, W]; at least one (zeros, where there is none). Empty clean
        latents of the coarser history are left out: the model puts zeros at their times."""
        times = [*self.controls[: len(controls)], *[0] * (len(controls) - len(self.controls))]
        clean = list(controls)
        if not self.no_post:
            clean.append(torch.zeros_like(clean[0]))
            post = self.controls[len(controls) : len(controls) + 1]  # musubi-tuner lets one more index move the empty frame
            times.append(post[0] if post else 1 + window)
        found = {
            "latent_indices": torch.tensor([self.target]),
            "latents_clean": torch.cat(clean, dim=1),
            "clean_latent_indices": torch.tensor(times),
        }
        first = 1 + window + NEAR
        if not self.no_2x:
            found["clean_latent_2x_indices"] = torch.arange(first, first + MIDDLE)
        if not self.no_4x:
            found["clean_latent_4x_indices"] = torch.arange(first + MIDDLE, first + MIDDLE + FAR)
        return found


def latent_mask(mask: np.ndarray, height: int, width: int) -> Tensor:
    """A mask uint8 [H, W] of any size as factors 0..1 of latents, [height, width]."""
    import numpy as np
    from PIL import Image

    small = Image.fromarray(mask, mode="L").resize((width, height), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.asarray(small).copy()).float() / 255.0
