"""From a prompt's values, the arguments and the defaults of the task to one request."""

from __future__ import annotations

import secrets
from argparse import Namespace
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..architectures.request import Guidance, Images, SampleRequest
from ..errors import UserError
from .prompts import SEEDS

if TYPE_CHECKING:
    from ..architectures.protocol import Architecture


def build_request(values: Mapping[str, Any], args: Namespace, architecture: Architecture) -> SampleRequest:
    """The request of one prompt: what its line says, else what the arguments say, else the defaults of the task. Values whose names
    only this architecture knows go into `SampleRequest.own`.

    UserError where the size, the number of frames or the images do not fit the model, naming the nearest size that does.
    """
    arguments = vars(args)
    task = architecture.card.task(arguments.get(architecture.card.task_option))

    def chosen(key: str, argument: str | None = None, default: Any = None) -> Any:
        value = values.get(key, arguments.get(argument or key))
        return default if value is None else value

    width, height = values.get("width", args.video_size[1]), values.get("height", args.video_size[0])
    request = SampleRequest(
        prompt=values["prompt"],
        negative_prompt=chosen("negative_prompt", default=None) or task.negative_prompt or architecture.card.negative_prompt,
        width=width,
        height=height,
        frames=chosen("frame_count", "video_length", task.frames),
        steps=chosen("sample_steps", "infer_steps", task.steps),
        flow_shift=chosen("discrete_flow_shift", "flow_shift", task.flow_shift_at(width, height)),
        seed=chosen("seed", default=secrets.randbelow(SEEDS)),
        sampler=arguments.get("sample_solver", "unipc"),
        cpu_noise=bool(arguments.get("cpu_noise")),
        guidance=_guidance(arguments, chosen("guidance_scale", default=task.guidance_scale)),
        images=_images(values, arguments),
        embedded_guidance=chosen("embedded_cfg_scale"),
        strength=chosen("strength"),
        one_frame=chosen("one_frame", "one_frame_inference"),
        own={key: value for key, value in values.items() if key in architecture.own_settings},
    )
    request = architecture.fitted(request, args)
    trimmed = arguments.get("trim_tail_frames", 0)
    if not 0 <= trimmed < request.frames:
        raise UserError(f"--trim_tail_frames {trimmed}: only 0 to {request.frames - 1} of {request.frames} frames can go")
    return request


def _guidance(arguments: Mapping[str, Any], scale: float) -> Guidance:
    return Guidance(
        scale=scale,
        skip_mode=arguments.get("cfg_skip_mode", "none"),
        apply_ratio=arguments.get("cfg_apply_ratio"),
        slg_mode=arguments.get("slg_mode"),
        slg_layers=_layers(arguments.get("slg_layers")),
        slg_scale=arguments.get("slg_scale", 3.0),
        slg_start=arguments.get("slg_start", 0.0),
        slg_end=arguments.get("slg_end", 0.3),
    )


def _images(values: Mapping[str, Any], arguments: Mapping[str, Any]) -> Images:
    def chosen(key: str, argument: str) -> Any:
        return values.get(key, arguments.get(argument))

    return Images(
        start=chosen("image_path", "image_path"),
        end=chosen("end_image_path", "end_image_path"),
        control_video=chosen("control_video_path", "control_path"),
        controls=tuple(chosen("control_image_path", "control_image_path") or ()),
        masks=tuple(chosen("control_image_mask_path", "control_image_mask_path") or ()),
        source_video=chosen("video_path", "video_path"),
    )


def _layers(text: str | None) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(",")) if text else ()
    except ValueError:
        raise UserError(f'--slg_layers "{text}": give block numbers separated by commas, for example 9,10') from None
