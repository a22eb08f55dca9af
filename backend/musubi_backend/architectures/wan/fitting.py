"""What a request needs to be one that the chosen Wan task can do. Reads headers of images at most."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from ...counted import counted
from ...errors import UserError
from ...inference.request_media import size_of
from ...inference.requests import with_images
from ..request import Guidance
from ..sizes import video_latent_shape
from .card import CARD
from .image_latents import size_like
from .one_frame import OneFrame

if TYPE_CHECKING:
    from ..card import Task
    from ..request import Images, SampleRequest
    from .settings import WanSettings

Shape = tuple[int, int, int, int]


def asked(request: SampleRequest, settings: WanSettings) -> SampleRequest:
    """A generator's request with what Wan's own options say of it; what its prompt line says goes before them."""
    guidance, video = settings.guidance, settings.video
    request = with_images(request, video.images)
    own = Guidance(
        request.guidance.scale,
        skip_mode=guidance.cfg_skip_mode,
        apply_ratio=guidance.cfg_apply_ratio,
        slg_mode=guidance.slg_mode,
        slg_layers=_layers(guidance.slg_layers),
        slg_scale=guidance.slg_scale,
        slg_start=guidance.slg_start,
        slg_end=guidance.slg_end,
    )
    control = video.control_path if request.images.control_video is None else request.images.control_video
    images = replace(request.images, control_video=control)
    return replace(request, sampler=video.sample_solver, cpu_noise=video.cpu_noise, guidance=own, images=images)


def _layers(text: str | None) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(",")) if text else ()
    except ValueError:
        raise UserError(f'--slg_layers "{text}": give block numbers separated by commas, for example 9,10') from None


def fitted(request: SampleRequest, settings: WanSettings, task: Task) -> SampleRequest:
    """A generator's request as `asked` and `_fitted` make it, with the guidance of the high-noise expert. UserError as there, and for more
    frames to trim than there are."""
    request = _with_high_noise_guidance(_fitted(asked(request, settings), settings, task), settings, task)
    trimmed = settings.video.trim_tail_frames
    if not 0 <= trimmed < request.frames:
        raise UserError(f"--trim_tail_frames {trimmed}: only 0 to {request.frames - 1} of {counted(request.frames, 'frame')} can go")
    return request


def fitted_sample(request: SampleRequest, settings: WanSettings, task: Task) -> SampleRequest:
    """A sample in training as `_fitted` makes it: of single frames if, and only if, these are trained."""
    if settings.images.one_frame and request.one_frame is None:
        raise UserError('--one_frame: each sample prompt needs its settings, e.g. --of "target_index=1,control_index=0" and --ci image.png')
    if request.one_frame is not None and not settings.images.one_frame:
        raise UserError("--of in a sample prompt makes a one-frame sample; start the training with --one_frame for that")
    return _fitted(request, settings, task)


def _fitted(request: SampleRequest, settings: WanSettings, task: Task) -> SampleRequest:
    """The request with the size of its start image's shape, checked. UserError for images the task does not take or lacks, and for
    sizes and lengths that do not fit, naming the nearest that do."""
    if request.one_frame is not None:
        _check_one_frame(request, request.one_frame, task)
    _check_images(request.images, task, request.one_frame is not None)
    _check_encoders(settings, task)
    if request.one_frame is not None:
        request = replace(request, frames=1)
    if request.images.start and not request.fixed_size:
        width, height = size_like(size_of(request.images.start), request.width * request.height)
        request = replace(request, width=width, height=height)
    latent_shape(request.width, request.height, request.frames)
    if task.frames == 1 and request.frames != 1:
        raise UserError(f"--video_length {request.frames}: task {task.name} makes single images; leave it out or give 1")
    return request


def latent_shape(width: int, height: int, frames: int) -> Shape:
    """[C, F', H', W'] of a video."""
    return video_latent_shape(CARD, width, height, frames)


def noise_shape(request: SampleRequest, task: Task) -> Shape:
    """[C, F', H', W'] of what is sampled: one-frame requests have a frame per image, and a last image that the model was not made for
    gets a frame of its own behind the video's."""
    channels, frames, height, width = latent_shape(request.width, request.height, request.frames)
    if request.one_frame is not None:
        frames = len(OneFrame.parse(request.one_frame).positions)
    elif has_extra_end(request, task):
        frames += 1
    return (channels, frames, height, width)


def has_extra_end(request: SampleRequest, task: Task) -> bool:
    """Does the request give a last image to a model that was only trained with a first one?"""
    return request.images.end is not None and not task.last_frame and request.one_frame is None


def boundary(settings: WanSettings) -> float | None:
    """Sigma of the boundary between the experts: `--timestep_boundary` (0..1, or a timestep up to 1000), else the task's."""
    given = settings.experts.timestep_boundary
    if given is None:
        return CARD.task(settings.task).boundary
    return given / 1000 if given > 1 else float(given)


def _with_high_noise_guidance(request: SampleRequest, settings: WanSettings, task: Task) -> SampleRequest:
    """Generating with a boundary, the noisy steps have a guidance of their own: with both experts, and with one alone as well."""
    given = settings.guidance.guidance_scale_high_noise
    if boundary(settings) is None:
        if given is not None:
            raise UserError(
                f"--guidance_scale_high_noise needs a boundary: task {task.name} has none, and --timestep_boundary is not given"
            )
        return request
    scale = next(value for value in (given, task.guidance_scale_high_noise, task.guidance_scale) if value is not None)
    return replace(request, guidance_high_noise=replace(request.guidance, scale=scale))


def _check_one_frame(request: SampleRequest, one_frame: str, task: Task) -> None:
    if not task.start_image or task.control:
        raise UserError(f"one-frame generation needs an image-to-video model; task {task.name} is none")
    wanted, given = len(OneFrame.parse(one_frame).controls), len(request.images.controls)
    if wanted != given:
        raise UserError(
            f'one-frame settings "{one_frame}" name {counted(wanted, "control position")} for {counted(given, "control image")}'
        )
    if len(request.images.masks) > given:
        raise UserError(f"{counted(len(request.images.masks), 'mask')} for {counted(given, 'control image')}; give at most one for each")


def _check_images(images: Images, task: Task, one_frame: bool) -> None:
    """UserError for images that are missing or would do nothing."""
    if task.start_image and not images.start and not one_frame:
        raise UserError(f"task {task.name} starts from an image: give one with --image_path, or --i in a prompt line")
    if task.last_frame and not images.end and not (one_frame and len(images.controls) > 1):
        raise UserError(f"task {task.name} ends with an image: give one with --end_image_path, or --ei in a prompt line")
    if task.control and not images.control_video:
        raise UserError(f"task {task.name} follows a control video: give one with --control_path, or --cn in a prompt line")
    surplus = {
        "a start image (--image_path)": images.start and not task.start_image,
        "an end image (--end_image_path)": images.end and (not task.start_image or task.control or (one_frame and not task.last_frame)),
        "a control video (--control_path)": images.control_video and not task.control,
        "control images (--control_image_path)": (images.controls or images.masks) and not one_frame,
    }
    for what, given in surplus.items():
        if given:
            raise UserError(f"task {task.name} takes no {what.partition(' ')[2]}; leave it out, or choose another --task")


def _check_encoders(settings: WanSettings, task: Task) -> None:
    """The image encoder must be there, also where no video is decoded."""
    if (task.start_image or task.control) and not settings.vae.vae:
        raise UserError(f"--vae is required: task {task.name} encodes its images with it")
    if task.start_image and task.image_encoder and not settings.images.clip:
        raise UserError(
            f"--clip is required: task {task.name} encodes its start image with the CLIP image encoder, e.g. clip_vision_h.safetensors"
        )
