"""One sampling run: noise in, latents out. Used by the generate verb and for samples during training."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .. import job
from ..architectures.request import SampleRequest
from ..counted import counted
from ..device import for_model
from .guidance import cfg_steps, check, guided_prediction, pattern_text

if TYPE_CHECKING:
    from torch import nn

    from ..architectures.protocol import Architecture, Batch

logger = logging.getLogger(__name__)

VARIABLE_LENGTH = "varlen_"  # prefix of text tensors that are kept unpadded, one per item
SOURCE = "latents_source"  # latents of a video that is changed, among the conditions


def sample(
    architecture: Architecture,
    transformer: nn.Module,
    request: SampleRequest,
    positive: Mapping[str, Tensor],
    negative: Mapping[str, Tensor] | None,
    *,
    device: torch.device,
    progress: Callable[[int], object] | None = None,
) -> Tensor:
    """Latents [C, F, H, W] or [C, H, W] in float32 on `device`, the same for the same request, model and kind of device.

    positive, negative: what `TextEncoder.encode` gave for the prompt and the negative prompt ({"varlen_t5": [L, D]}), both with
    what `ConditionEncoder.encode` gave; negative may be None where `request.needs_negative` is false. The transformer chooses its
    own arithmetic, so no autocast. progress is called with 1 after each step.
    Raises StopRequested between two steps or two blocks once the job was asked to stop.
    """
    guidance = request.guidance
    block_lists: list[nn.ModuleList] = transformer.block_lists()  # type: ignore[operator]
    check(guidance, sum(len(blocks) for blocks in block_lists))
    if negative is None and request.needs_negative:
        raise ValueError("guidance needs the encoded negative prompt")
    guided = cfg_steps(guidance.skip_mode, guidance.apply_ratio, request.steps)
    if not all(guided):
        logger.info(f"CFG skip mode: {guidance.skip_mode}, apply ratio: {guidance.apply_ratio}, pattern: {pattern_text(guided)}")
    batches = {True: batch_of_one(positive, device), False: batch_of_one(negative or {}, device)}
    sampler = architecture.sampler(request)
    latents = initial_noise(architecture.noise_shape(request), request, device, architecture.card.noise_per_frame)[None]
    if SOURCE in positive:
        latents = torch.lerp(positive[SOURCE][None].to(latents), latents, sampler.sigmas[0])
    boundary, high_noise = architecture.boundary(), False
    for step, timestep in enumerate(sampler.timesteps):
        job.leave_if_asked(f"stopped while sampling, after {step} of {counted(request.steps, 'step')}")
        now = torch.tensor([timestep], dtype=torch.float32)

        def predict(positive: bool, skip_blocks: tuple[int, ...], noisy: Tensor = latents, now: Tensor = now) -> Tensor:
            return architecture.predict(transformer, noisy, now, batches[positive], skip_blocks=skip_blocks).float()

        was_high, high_noise = high_noise, boundary is not None and timestep / 1000 >= boundary
        guidance = request.guidance_of(high_noise)
        if was_high and not high_noise:
            logger.info(f"Switching to low noise at step {step}, t={timestep:g}, guidance_scale={guidance.scale}")
        with torch.no_grad():
            velocity = guided_prediction(predict, guidance, step, request.steps, guided[step])
        latents = sampler.step(velocity, latents)
        if progress is not None:
            progress(1)
    return latents[0]


def initial_noise(shape: tuple[int, ...], request: SampleRequest, device: torch.device, per_frame: bool = False) -> Tensor:
    """Noise of the shape, [C, F, H, W] or [C, H, W], for the request's seed, float32. Drawn on the CPU with `cpu_noise`: then it is
    ComfyUI's for that seed.
    per_frame: see `Card.noise_per_frame`."""
    source = torch.device("cpu") if request.cpu_noise else device
    generator = torch.Generator(source).manual_seed(request.seed)
    parts = [(shape[0], 1, *shape[2:])] * shape[1] if per_frame else [shape]
    drawn = [torch.randn(part, generator=generator, device=source, dtype=torch.float32) for part in parts]
    return torch.cat(drawn, dim=1).to(device)


def batch_of_one(tensors: Mapping[str, Tensor], device: torch.device) -> Batch:
    """The tensors of one sample as `Architecture.predict` takes them: lists for unpadded ones, a batch dimension for the others."""
    batch: Batch = {}
    for name, tensor in tensors.items():
        if name.startswith(VARIABLE_LENGTH):
            batch[name.removeprefix(VARIABLE_LENGTH)] = [for_model(tensor, device)]
        else:
            batch[name] = for_model(tensor[None], device)
    return batch
