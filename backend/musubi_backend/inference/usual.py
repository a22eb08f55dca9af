"""How most architectures generate: their options, one latent sampled by a sampler, what is said of results. No torch until it is used."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from ..architectures.protocol import Architecture

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from ..architectures.request import LineOption, SampleRequest


class UsualSampling(Architecture):
    """An architecture with these answers. One that makes a video in sections has its own `sample`."""

    @property
    def line_options(self) -> Mapping[str, LineOption]:
        from .prompts import GENERATE_OPTIONS

        return GENERATE_OPTIONS

    def sample(
        self,
        transformer: nn.Module,
        request: SampleRequest,
        texts: Mapping[str, Mapping[str, Tensor]],
        conditions: Mapping[str, Tensor],
        *,
        device: torch.device,
        progress: Callable[[int], object] | None = None,
    ) -> Tensor:
        """As `sampling.sample`."""
        from .sampling import sample

        negative = {**texts[request.negative_prompt], **conditions} if request.needs_negative else None
        positive = {**texts[request.prompt], **conditions}
        return sample(self, transformer, request, positive, negative, device=device, progress=progress)

    def describe(self, request: SampleRequest) -> dict[str, str]:
        from .outputs import describe

        return describe(request)
