"""Sampling with FramePack: section after section, each next to the history of the finished ones; or one frame."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from ... import job
from ...counted import counted
from ...inference.sampling import batch_of_one
from .cache_forms import FAR, MIDDLE
from .card import CARD
from .magcache import Calibration, MagCache, wanted
from .model import Clean
from .one_frame import OneFrame
from .section_texts import chosen, parse_sections
from .sections import History, given_paddings, plan
from .unipc import FlowUniPC, sigmas

if TYPE_CHECKING:
    from torch import nn

    from ..protocol import Architecture, Batch, Inputs
    from ..request import SampleRequest
    from .model import FramePackTransformer
    from .settings import FramePackSettings

logger = logging.getLogger(__name__)


GUIDANCE = "guidance"
"""Name in a batch of the embedded guidance, times 1000."""


def model_inputs(noisy: Tensor, timesteps: Tensor, batch: Batch, skip_blocks: Sequence[int] = ()) -> Inputs:
    """What the transformer is given for a batch with the names of caches and the guidance. A history of which only the times are given is
    empty: zeros."""
    values: Any = batch
    texts = values["llama_vec"], values["llama_attention_mask"], values["clip_l_pooler"]
    return (noisy, timesteps, *texts, values[GUIDANCE]), {
        "image": values["image_embeddings"],
        "latent_indices": values["latent_indices"],
        "clean": Clean(values["latents_clean"], values["clean_latent_indices"]),
        "clean_2x": _history(values, "2x", MIDDLE, noisy),
        "clean_4x": _history(values, "4x", FAR, noisy),
        "skip_blocks": skip_blocks,
    }


def _history(values: Mapping[str, Tensor], part: str, frames: int, noisy: Tensor) -> Clean | None:
    indices = values.get(f"clean_latent_{part}_indices")
    if indices is None:
        return None
    batch, channels, _, height, width = noisy.shape
    latents = values.get(f"latents_clean_{part}")
    return Clean(noisy.new_zeros(batch, channels, frames, height, width) if latents is None else latents, indices)


def sample(
    architecture: Architecture,
    transformer: nn.Module,
    request: SampleRequest,
    texts: Mapping[str, Mapping[str, Tensor]],
    conditions: Mapping[str, Tensor],
    *,
    settings: FramePackSettings,
    device: torch.device,
    progress: Callable[[int], object] | None = None,
) -> Tensor:
    """Latents [C, F, H, W] in float32 on the CPU: the start image and all sections, or the one frame. See `Architecture.sample`."""
    sampler = _Sampler(architecture, transformer, request, texts, settings, device, progress)
    one_frame = request.one_frame
    return sampler.video(conditions) if one_frame is None else sampler.one_frame(one_frame, conditions)


class _Sampler:
    """One request on its way. All its noise comes from one generator on the CPU, as musubi-tuner draws it."""

    def __init__(
        self,
        architecture: Architecture,
        transformer: nn.Module,
        request: SampleRequest,
        texts: Mapping[str, Mapping[str, Tensor]],
        settings: FramePackSettings,
        device: torch.device,
        progress: Callable[[int], object] | None,
    ) -> None:
        self.request, self.texts, self.settings, self.device, self.progress = request, texts, settings, device, progress
        self.architecture, self.transformer = architecture, cast("FramePackTransformer", transformer)
        self.window: int = request.own["latent_window_size"]
        self.generator = torch.Generator().manual_seed(request.seed)

    def video(self, conditions: Mapping[str, Tensor]) -> Tensor:
        count: int = self.request.own["sections"]
        prompts = parse_sections(self.request.prompt or " ")
        starts = {int(name.split()[1]): value for name, value in conditions.items() if name.startswith("start ")}
        f1 = self.settings.items.f1
        paddings = self.settings.sections.latent_paddings
        history = History(starts[0].float(), self.window, f1, conditions.get("end"))
        for section in plan(count, f1, given_paddings(paddings, count) if paddings else None):
            image = chosen(starts, section.number, count)
            history.start = starts[image].float()
            prompt = prompts[chosen(prompts, section.number, count)]
            logger.info("Section %d: %s", section.number, prompt)
            beside = {**history.conditions(section), "image_embeddings": conditions[f"image {image}"]}
            history.add(self._section(prompt, beside, self.window), section)
        return history.finished()

    def one_frame(self, settings: str, conditions: Mapping[str, Tensor]) -> Tensor:
        names = sorted((name for name in conditions if name.startswith("control ")), key=lambda name: int(name.split()[1]))
        controls = [conditions[name].float() for name in names] or [torch.zeros_like(conditions["start 0"]).float()]
        beside = OneFrame.parse(settings, self.window).conditions(controls, self.window)
        prompts = parse_sections(self.request.prompt or " ")
        return self._section(prompts[0], {**beside, "image_embeddings": conditions["image 0"]}, 1)

    def _section(self, prompt: str, beside: Mapping[str, Tensor], frames: int) -> Tensor:
        """Latents [C, frames, H, W] in float32 on the CPU."""
        request, scale = self.request, CARD.spatial_compression
        shape = (1, CARD.latent_channels, frames, request.height // scale, request.width // scale)
        latents = torch.randn(shape, generator=self.generator).to(self.device)
        assert request.embedded_guidance is not None  # the flag has a default, and so have sample prompts
        beside = {**beside, GUIDANCE: self.transformer.embedded_guidance(request.embedded_guidance)[0]}
        positive = batch_of_one({**self.texts[prompt], **beside}, self.device)
        negative = None
        if request.guidance.scale != 1.0:
            negative = batch_of_one({**self.texts[request.negative_prompt], **beside}, self.device)
        run = sampler(request)
        caches = [wanted(self.settings.magcache, request.own, request.steps) for _ in range(2)]
        try:
            for step, timestep in enumerate(run.timesteps):
                job.leave_if_asked(f"stopped while sampling, after {step} of {counted(request.steps, 'step')} of a section")
                now = torch.tensor([timestep], dtype=torch.float32)
                with torch.no_grad():
                    latents = run.step(self._guided(latents, now, positive, negative, caches), latents)
                if self.progress is not None:
                    self.progress(1)
        finally:
            self.transformer.around_blocks = None
        if isinstance(caches[0], Calibration):
            caches[0].report()
        elif caches[0] is not None:
            logger.info("MagCache skipped steps %s of %d", caches[0].skipped, request.steps)
        return latents[0].cpu()

    def _guided(
        self, latents: Tensor, now: Tensor, positive: Batch, negative: Batch | None, caches: Sequence[MagCache | Calibration | None]
    ) -> Tensor:
        with_prompt = self._velocity(latents, now, positive, caches[0])
        if negative is None:
            return with_prompt
        without = self._velocity(latents, now, negative, caches[1])
        mixed = without + self.request.guidance.scale * (with_prompt - without)
        return rescaled(mixed, with_prompt, self.request.own["guidance_rescale"])

    def _velocity(self, latents: Tensor, now: Tensor, batch: Batch, cache: MagCache | Calibration | None) -> Tensor:
        self.transformer.around_blocks = cache
        return self.architecture.predict(self.transformer, latents, now, batch).float()


def rescaled(mixed: Tensor, with_prompt: Tensor, share: float) -> Tensor:
    """`share` of a guided prediction brought back to the spread it has without guidance (arXiv 2305.08891, section 3.4)."""
    if share == 0:
        return mixed
    return mixed * (share * with_prompt.std() / mixed.std() + (1 - share))


def sampler(request: SampleRequest) -> FlowUniPC:
    """A fresh sampler for one section of a fitted request."""
    return FlowUniPC(sigmas(request.steps, request.flow_shift))
