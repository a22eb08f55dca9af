"""What a request to FramePack may say, checked and completed: length in sections, images, one-frame settings."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...counted import counted
from ...dataset.buckets import best_fit
from ...errors import UserError
from ...inference.prompts import GENERATE_OPTIONS
from ...inference.requests import with_images
from ..request import Images, LineOption, SampleRequest
from ..sizes import video_latent_shape
from .card import CARD
from .one_frame import OneFrame
from .section_texts import parse_sections
from .sections import FRAME_RATE, count_for_seconds, count_of, frames_of, given_paddings
from .settings import FramePackSettings, SectionSettings

logger = logging.getLogger(__name__)

LINE_OPTIONS: Mapping[str, LineOption] = {
    **{name: option for name, option in GENERATE_OPTIONS.items() if name not in ("cn", "f")},
    "f": LineOption("video_seconds", float, 0.01, 3600),
    "vs": LineOption("video_sections", int, 1, 3000),
    "mcrr": LineOption("magcache_retention_ratio", float, 0, 1),
    "mct": LineOption("magcache_threshold", float, 0, 100),
    "mck": LineOption("magcache_k", int, 0, 1000),
}
"""`--f` is a length in seconds here, not in frames."""


def fitted(request: SampleRequest, settings: FramePackSettings) -> SampleRequest:
    """A generator's request with what FramePack's own options say of it, its number of sections, frames and what files say. UserError for
    sizes, lengths, one-frame settings and images that cannot be used."""
    from .magcache import wanted

    request = with_images(request, settings.images)
    request = replace(request, sampler=settings.sample_solver, embedded_guidance=settings.embedded_cfg_scale)
    _check(request, settings)
    if settings.one_frame_auto_resize:
        request = _like_its_control_image(request)
    sections = 0 if request.one_frame is not None else _sections(request, settings.sections)
    paddings = settings.sections.latent_paddings
    if paddings:
        if settings.items.f1 or not sections:
            raise UserError(
                f"--latent_paddings: only sections of plain {CARD.title} have paddings, not F1's and not a single frame; leave it out"
            )
        given_paddings(paddings, sections)
    wanted(settings.magcache, request.own, request.steps)  # rejects bad ratios
    return _completed(request, settings, sections, request.flow_shift)


def fitted_sample(request: SampleRequest, settings: FramePackSettings) -> SampleRequest:
    """The same of a sample in training, whose prompt says everything but the shift, which follows from the size; a training with
    `--one_frame` makes all its samples so."""
    if request.one_frame is None and settings.items.one_frame:
        request = replace(request, one_frame="default")
    _check(request, settings)
    window, sections = settings.sections.latent_window_size, 0
    if request.one_frame is None:
        sections = count_of(request.frames, window)
        if sections < 1:
            fewest = frames_of(1, window)
            raise UserError(
                f"{counted(request.frames, 'frame is', 'frames are')} too few for a sample: {CARD.title} needs at least {fewest} (--f)"
            )
    return _completed(request, settings, sections, 0.0)


def _check(request: SampleRequest, settings: FramePackSettings) -> None:
    for flag, file in (("vae", settings.vae.vae), ("image_encoder", settings.image_encoder)):
        if not file:
            raise UserError(f"--{flag} is required: {CARD.title} encodes its start image with it")
    if request.sampler != "unipc":
        raise UserError(f"--sample_solver {request.sampler}: {CARD.title} has unipc only")
    if request.one_frame is not None:
        OneFrame.parse(request.one_frame, settings.sections.latent_window_size)
    _check_images(request.images, settings.items.f1, request.one_frame is not None)


def _completed(request: SampleRequest, settings: FramePackSettings, sections: int, shift: float) -> SampleRequest:
    """sections: 0 for a single frame. shift: 0 for the one that follows from the size."""
    window = settings.sections.latent_window_size
    frames = frames_of(sections, window) if sections else 1
    own = {
        **request.own,
        "sections": sections,
        "latent_window_size": window,
        "guidance_rescale": settings.guidance_rescale,
        "fps": settings.fps,
    }
    shift = shift or _shift(request, window if sections else 1)
    video_latent_shape(CARD, request.width, request.height, frames)
    return replace(request, frames=frames, flow_shift=shift, own=own)


def _sections(request: SampleRequest, settings: SectionSettings) -> int:
    given = request.own.get("video_sections") or settings.video_sections
    if given:
        return int(given)
    return count_for_seconds(request.own.get("video_seconds", settings.video_seconds), settings.latent_window_size)


def _shift(request: SampleRequest, frames: int) -> float:
    """The shift for the size of a section of so many latent frames."""
    from .unipc import dynamic_shift

    scale = CARD.spatial_compression
    return dynamic_shift(frames * (request.height // scale) * (request.width // scale) // 4)


def _like_its_control_image(request: SampleRequest) -> SampleRequest:
    """A single frame gets the shape of its first control image."""
    from ...inference.request_media import size_of

    if request.one_frame is None or not request.images.controls:
        return request
    width, height = best_fit(size_of(request.images.controls[0]), (request.width, request.height), CARD.bucket_step)
    logger.info(f"Adjusted image size to {width}x{height} based on the first control image")
    return replace(request, width=width, height=height)


def _check_images(images: Images, f1: bool, one_frame: bool) -> None:
    """Reject images that are not there, and those that would not be used."""
    files = [*parse_sections(images.start).values(), *([images.end] if images.end else []), *images.controls, *images.masks]
    for file in files:
        if not Path(file).is_file():
            raise UserError(f"the image {file} does not exist")
    if images.control_video or images.source_video:
        raise UserError(f"{CARD.title} starts from images, not from videos")
    if images.end and (f1 or one_frame):
        raise UserError(f"the end image {images.end}: only plain {CARD.title} takes one, not F1 and not a single frame")
    if images.controls and not one_frame:
        raise UserError(f"the control image {images.controls[0]}: control images steer single frames; add --one_frame_inference")
    if len(images.masks) > len(images.controls):
        raise UserError(
            f"{counted(len(images.masks), 'mask')} for {counted(len(images.controls), 'control image')}; give at most one for each"
        )


def describe(request: SampleRequest) -> dict[str, str]:
    """What a result was made with, under musubi-tuner's metadata names."""
    own: Mapping[str, Any] = request.own
    seconds = request.frames / FRAME_RATE if own["sections"] else 0.0
    described = {
        "seeds": request.seed,
        "prompt": request.prompt,
        "height": request.height,
        "width": request.width,
        "video_seconds": round(seconds, 5),
        "infer_steps": request.steps,
        "guidance_scale": request.guidance.scale,
        "latent_window_size": own["latent_window_size"],
        "embedded_cfg_scale": request.embedded_guidance,
        "guidance_rescale": own["guidance_rescale"],
        "sample_solver": request.sampler,
        "fps": own["fps"],
    }
    if request.negative_prompt:
        described["negative_prompt"] = request.negative_prompt
    return {name: str(value) for name, value in described.items()}
