"""What a request to FramePack may say, checked and completed: length in sections, images, one-frame settings."""

from __future__ import annotations

import logging
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...dataset.buckets import best_fit
from ...errors import UserError
from ...inference.prompts import GENERATE_OPTIONS
from ..request import Images, LineOption, SampleRequest
from ..sizes import video_latent_shape
from .card import CARD
from .one_frame import OneFrame
from .section_texts import parse_sections
from .sections import FRAME_RATE, count_for_seconds, count_of, frames_of, given_paddings

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


def fitted(request: SampleRequest, args: Namespace) -> SampleRequest:
    """The request with its number of sections, frames and what files say of it. UserError for sizes, lengths, one-frame settings and
    images that cannot be used."""
    from ...inference.request_media import size_of
    from .magcache import wanted

    for flag in ("vae", "image_encoder"):
        if not getattr(args, flag):
            raise UserError(f"--{flag} is required: {CARD.title} encodes its start image with it")
    if request.sampler != "unipc":
        raise UserError(f"--sample_solver {request.sampler}: {CARD.title} has unipc only")
    _check_images(request.images, args.f1, _one_frame(request, args) is not None)
    if _auto_resized(request, args):
        width, height = best_fit(size_of(request.images.controls[0]), (request.width, request.height), CARD.bucket_step)
        logger.info(f"Adjusted image size to {width}x{height} based on the first control image")
        request = replace(request, width=width, height=height)
    window = args.latent_window_size
    one_frame = _one_frame(request, args)
    sections = 0 if one_frame is not None else _sections(request, args)
    if getattr(args, "latent_paddings", None):
        if args.f1 or not sections:
            raise UserError(f"--latent_paddings: only the sections of plain {CARD.title} have paddings, not F1's and not a single frame")
        given_paddings(args.latent_paddings, sections)
    wanted(args, request.own, request.steps)  # rejects bad ratios
    own = {
        **request.own,
        "sections": sections,
        "latent_window_size": window,
        "guidance_rescale": getattr(args, "guidance_rescale", 0.0),
        "fps": getattr(args, "fps", CARD.fps),
    }
    frames, shift = frames_of(sections, window) if sections else 1, _shift(request, args, window if sections else 1)
    video_latent_shape(CARD, request.width, request.height, frames)
    return replace(request, frames=frames, flow_shift=shift, one_frame=one_frame, own=own)


def _one_frame(request: SampleRequest, args: Namespace) -> str | None:
    """The one-frame settings, checked; a training with `--one_frame` makes all its samples so."""
    text = request.one_frame
    if text is None and getattr(args, "one_frame", False):
        text = "default"
    if text is not None:
        OneFrame.parse(text, args.latent_window_size)
    return text


def _sections(request: SampleRequest, args: Namespace) -> int:
    window = args.latent_window_size
    if hasattr(args, "video_seconds"):
        given = request.own.get("video_sections") or args.video_sections
        return int(given) if given else count_for_seconds(request.own.get("video_seconds", args.video_seconds), window)
    sections = count_of(request.frames, window)
    if sections < 1:
        raise UserError(f"{request.frames} frames are too few for a sample: {CARD.title} needs at least {frames_of(1, window)} (--f)")
    return sections


def _shift(request: SampleRequest, args: Namespace, frames: int) -> float:
    """The shift that was asked for, else the one for the size. Samples during training always have the latter."""
    from .unipc import dynamic_shift

    if request.flow_shift and hasattr(args, "flow_shift"):
        return request.flow_shift
    scale = CARD.spatial_compression
    return dynamic_shift(frames * (request.height // scale) * (request.width // scale) // 4)


def _auto_resized(request: SampleRequest, args: Namespace) -> bool:
    return bool(getattr(args, "one_frame_auto_resize", False)) and request.one_frame is not None and bool(request.images.controls)


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
        raise UserError(f"{len(images.masks)} masks for {len(images.controls)} control images; give at most one for each")


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
