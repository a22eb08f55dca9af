"""From a prompt's values, the settings and the defaults of the task to one request."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..architectures.request import AddedLoRA, Guidance, Images, SampleRequest
from ..errors import UserError
from .prompts import SEEDS
from .settings import GenerateSettings, RequestImageSettings

if TYPE_CHECKING:
    from ..architectures.protocol import Architecture


def build_request(values: Mapping[str, Any], settings: GenerateSettings, architecture: Architecture) -> SampleRequest:
    """The request of one prompt: what its line says, else what the settings say, else the defaults of the task. Values whose names
    only this architecture knows go into `SampleRequest.own`; what its own settings say, it adds itself (`Architecture.fitted`).

    UserError where the size, the number of frames or the images do not fit the model, naming the nearest size that does.
    """
    task, video, prompts = architecture.task, settings.video, settings.prompts

    def chosen(key: str, setting: Any, default: Any = None) -> Any:
        value = values.get(key, setting)
        return default if value is None else value

    width, height = values.get("width", video.video_size[1]), values.get("height", video.video_size[0])
    request = SampleRequest(
        prompt=values["prompt"],
        negative_prompt=chosen("negative_prompt", prompts.negative_prompt) or task.negative_prompt or architecture.card.negative_prompt,
        width=width,
        height=height,
        frames=chosen("frame_count", video.video_length, task.frames),
        steps=chosen("sample_steps", video.infer_steps, task.steps),
        flow_shift=chosen("discrete_flow_shift", video.flow_shift, task.flow_shift_at(width, height)),
        seed=chosen("seed", video.seed, secrets.randbelow(SEEDS)),
        guidance=Guidance(chosen("guidance_scale", video.guidance_scale, task.guidance_scale)),
        images=Images(
            start=values.get("image_path", prompts.image_path),
            end=values.get("end_image_path"),
            control_video=values.get("control_video_path"),
            controls=values.get("control_image_path", ()),
            masks=values.get("control_image_mask_path", ()),
        ),
        one_frame=values.get("one_frame"),
        lora=_lora(values, architecture),
        own={key: value for key, value in values.items() if key in architecture.own_settings},
    )
    return architecture.fitted(request)


def _lora(values: Mapping[str, Any], architecture: Architecture) -> AddedLoRA | None:
    path, high_noise = values.get("lora_weight"), values.get("lora_weight_high_noise")
    if not path and not high_noise:
        if "lora_multiplier" in values:
            raise UserError("--lm is the strength of the LoRA that --lw names, and the prompt has none: add --lw, or leave --lm out")
        return None
    if high_noise and architecture.boundary() is None:
        raise UserError(f"--lwh is for the high-noise model of two, and {architecture.card.title} has one model; leave it out")
    from ..lora.changing import check

    for file in filter(None, (path, high_noise)):
        check(file)
    return AddedLoRA(path, high_noise, values.get("lora_multiplier", 1.0))


def with_images(request: SampleRequest, settings: RequestImageSettings) -> SampleRequest:
    """With the last frame, the control images and the one-frame settings of those options where the prompt line has none."""
    given, one_frame = request.images, request.one_frame
    images = replace(
        given,
        end=settings.end_image_path if given.end is None else given.end,
        controls=given.controls or settings.control_image_path or (),
        masks=given.masks or settings.control_image_mask_path or (),
    )
    return replace(request, images=images, one_frame=settings.one_frame_inference if one_frame is None else one_frame)
