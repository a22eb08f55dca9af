"""One sampling run: noise in, latents out. Used by the generate verb and for samples during training."""

from __future__ import annotations

import logging
from argparse import Namespace
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .. import job
from .guidance import Guidance, cfg_steps, check, guided_prediction, pattern_text

if TYPE_CHECKING:
    from torch import nn

    from ..architectures.protocol import Architecture, Batch

logger = logging.getLogger(__name__)

VARIABLE_LENGTH = "varlen_"  # prefix of text tensors that are kept unpadded, one per item
SOURCE = "latents_source"  # latents of a video that is changed, among the conditions


@dataclass(frozen=True)
class Pictures:
    """Files that a request starts from or is steered by, as paths; what a task does not take stays empty.

    start, end       first and last frame
    control_video    video file or folder of images of Fun-Control models
    controls, masks  control images of one-frame generation, and their masks
    source_video     the video that is changed (video-to-video)
    """

    start: str | None = None
    end: str | None = None
    control_video: str | None = None
    controls: tuple[str, ...] = ()
    masks: tuple[str, ...] = ()
    source_video: str | None = None

    def given(self) -> dict[str, str | tuple[str, ...]]:
        """The images there are, by name."""
        return {name: value for name, value in vars(self).items() if value}


@dataclass(frozen=True)
class SampleRequest:
    """Everything that decides what is generated. width, height in pixels.

    guidance_high_noise   of the steps above `Architecture.boundary`, where that differs
    embedded_guidance   embedded guidance of a guidance-distilled model; None for other models
    strength            share of the steps that change `pictures.source_video`
    one_frame           settings of one-frame generation ("target_index=1,control_index=0;10"), None for video
    fixed_size          the size stays and images are cut to it; else it may be taken from the start image, keeping its area
    own                 settings that only this architecture has, by option name
    """

    prompt: str
    seed: int
    width: int
    height: int
    frames: int
    steps: int
    flow_shift: float
    guidance: Guidance
    negative_prompt: str = ""
    solver: str = "unipc"
    cpu_noise: bool = False
    pictures: Pictures = Pictures()
    guidance_high_noise: Guidance | None = None
    embedded_guidance: float | None = None
    strength: float | None = None
    one_frame: str | None = None
    fixed_size: bool = False
    own: Mapping[str, Any] = field(default_factory=dict)

    @property
    def needs_negative(self) -> bool:
        """False where the negative prompt cannot change the result, so that it need not be encoded."""
        return any(guidance is not None and guidance.needs_negative for guidance in (self.guidance, self.guidance_high_noise))

    def guidance_of(self, high_noise: bool) -> Guidance:
        """What holds above or below the boundary."""
        return self.guidance_high_noise if high_noise and self.guidance_high_noise is not None else self.guidance


def sample(
    architecture: Architecture,
    transformer: nn.Module,
    request: SampleRequest,
    positive: Mapping[str, Tensor],
    negative: Mapping[str, Tensor] | None,
    *,
    args: Namespace,
    device: torch.device,
    progress: Callable[[int], object] | None = None,
) -> Tensor:
    """Latents [C, F, H, W] in float32 on `device`, the same for the same request, model and kind of device.

    positive, negative: what `TextEncoder.encode` gave for the prompt and the negative prompt ({"varlen_t5": [L, D]}), both with
    what `ConditionEncoder.encode` gave; negative may be None where `request.needs_negative` is false. args: of the running
    tool, for `Architecture.predict`. The transformer chooses its own arithmetic, so no autocast. progress is called with 1 after each step.
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
    solver = architecture.solver(request)
    latents = initial_noise(architecture.noise_shape(request, args), request, device, architecture.card.noise_per_frame)[None]
    if SOURCE in positive:
        latents = torch.lerp(positive[SOURCE][None].to(latents), latents, solver.sigmas[0])
    boundary, high_noise = architecture.boundary(args), False
    for step, timestep in enumerate(solver.timesteps):
        job.leave_if_asked(f"stopped while sampling, after {step} of {request.steps} steps")
        now = torch.tensor([timestep], dtype=torch.float32, device=device)

        def predict(positive: bool, skip_blocks: tuple[int, ...], noisy: Tensor = latents, now: Tensor = now) -> Tensor:
            return architecture.predict(transformer, noisy, now, batches[positive], args, skip_blocks=skip_blocks).float()

        was_high, high_noise = high_noise, boundary is not None and timestep / 1000 >= boundary
        guidance = request.guidance_of(high_noise)
        if was_high and not high_noise:
            logger.info(f"Switching to low noise at step {step}, t={timestep:g}, guidance_scale={guidance.scale}")
        with torch.no_grad():
            velocity = guided_prediction(predict, guidance, step, request.steps, guided[step])
        latents = solver.step(velocity, latents)
        if progress is not None:
            progress(1)
    return latents[0]


def initial_noise(shape: tuple[int, int, int, int], request: SampleRequest, device: torch.device, per_frame: bool = False) -> Tensor:
    """Noise [C, F, H, W] for the request's seed, float32. Drawn on the CPU with `cpu_noise`: then it is ComfyUI's for that seed.
    per_frame: see `Card.noise_per_frame`."""
    source = torch.device("cpu") if request.cpu_noise else device
    generator = torch.Generator(source).manual_seed(request.seed)
    channels, frames, height, width = shape
    lengths = [1] * frames if per_frame else [frames]
    drawn = [torch.randn((channels, n, height, width), generator=generator, device=source, dtype=torch.float32) for n in lengths]
    return torch.cat(drawn, dim=1).to(device)


def batch_of_one(tensors: Mapping[str, Tensor], device: torch.device) -> Batch:
    """The tensors of one sample as `Architecture.predict` takes them: lists for unpadded ones, a batch dimension for the others."""
    batch: Batch = {}
    for name, tensor in tensors.items():
        if name.startswith(VARIABLE_LENGTH):
            batch[name.removeprefix(VARIABLE_LENGTH)] = [tensor.to(device)]
        else:
            batch[name] = tensor[None].to(device)
    return batch
