"""What a request needs to be one that the chosen Wan task can do. Reads headers of images at most."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import replace
from typing import TYPE_CHECKING

from ...errors import UserError
from ...inference.request_media import size_of
from ..sizes import video_latent_shape
from .card import CARD
from .image_latents import size_like
from .one_frame import OneFrame

if TYPE_CHECKING:
    from ..card import Task
    from ..request import Images, SampleRequest

Shape = tuple[int, int, int, int]


def fitted(request: SampleRequest, args: Namespace, task: Task) -> SampleRequest:
    """The request with the size of its start image's shape, checked. UserError for images the task does not take or lacks, and for
    sizes and lengths that do not fit, naming the nearest that do."""
    _check_one_frame(request, args, task)
    _check_images(request.images, task, request.one_frame is not None)
    _check_encoders(args, task)
    if request.one_frame is not None:
        request = replace(request, frames=1)
    if request.images.start and not request.fixed_size:
        width, height = size_like(size_of(request.images.start), request.width * request.height)
        request = replace(request, width=width, height=height)
    latent_shape(request.width, request.height, request.frames)
    request = _with_high_noise_guidance(request, args, task)
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


def boundary(args: Namespace) -> float | None:
    """Sigma of the boundary between the experts: `--timestep_boundary` (0..1, or a timestep up to 1000), else the task's."""
    given: float | None = args.timestep_boundary
    if given is None:
        return CARD.task(args.task).boundary
    return given / 1000 if given > 1 else float(given)


def _with_high_noise_guidance(request: SampleRequest, args: Namespace, task: Task) -> SampleRequest:
    """Generating with a boundary, the noisy steps have a guidance of their own: with both experts, and with one alone as well."""
    given: float | None = getattr(args, "guidance_scale_high_noise", None)
    if boundary(args) is None:
        if given is not None:
            raise UserError(
                f"--guidance_scale_high_noise needs a boundary: task {task.name} has none, and --timestep_boundary is not given"
            )
        return request
    if not hasattr(args, "guidance_scale_high_noise"):  # samples while training
        return request
    scale = next(value for value in (given, task.guidance_scale_high_noise, task.guidance_scale) if value is not None)
    return replace(request, guidance_high_noise=replace(request.guidance, scale=scale))


def _check_one_frame(request: SampleRequest, args: Namespace, task: Task) -> None:
    if request.one_frame is None:
        if getattr(args, "one_frame", False):
            raise UserError(
                '--one_frame: each sample prompt needs its settings, e.g. --of "target_index=1,control_index=0" and --ci image.png'
            )
        return
    if getattr(args, "one_frame", True) is False:
        raise UserError("--of in a sample prompt makes a one-frame sample; start the training with --one_frame for that")
    if not task.start_image or task.control:
        raise UserError(f"one-frame generation needs an image-to-video model; task {task.name} is none")
    wanted, given = len(OneFrame.parse(request.one_frame).controls), len(request.images.controls)
    if wanted != given:
        raise UserError(f'one-frame settings "{request.one_frame}" name {wanted} control positions, and {given} control images are given')
    if len(request.images.masks) > given:
        raise UserError(f"{len(request.images.masks)} masks are given for {given} control images")


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


def _check_encoders(args: Namespace, task: Task) -> None:
    """The image encoder must be there, also where no video is decoded."""
    if (task.start_image or task.control) and not args.vae:
        raise UserError(f"--vae is required: task {task.name} encodes its images with it")
    if task.start_image and task.image_encoder and not args.clip:
        raise UserError(
            f"--clip is required: task {task.name} encodes its start image with the CLIP image encoder, e.g. clip_vision_h.safetensors"
        )
