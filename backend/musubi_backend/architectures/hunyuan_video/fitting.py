"""What a request needs to be one that the HunyuanVideo model in `--dit` can do. Reads headers at most."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from ...errors import UserError
from ..sizes import video_latent_shape
from .card import CARD

if TYPE_CHECKING:
    from ..request import SampleRequest
    from .settings import HunyuanSettings

FIRST_FRAME = "latents_image"  # [16, 1, H', W'], scaled: the image an image-to-video request starts from


def asked(request: SampleRequest, settings: HunyuanSettings) -> SampleRequest:
    """A generator's request with what HunyuanVideo's own options say of it."""
    images = replace(request.images, source_video=settings.video_path)
    return replace(request, images=images, strength=settings.strength, embedded_guidance=settings.embedded_cfg_scale)


def checked(request: SampleRequest, settings: HunyuanSettings) -> SampleRequest:
    """The request as it is. UserError for sizes that do not fit, and for images that the model does not take or lacks."""
    from .load import geometry

    video_latent_shape(CARD, request.width, request.height, request.frames)
    start, source = request.images.start, request.images.source_video
    takes_image = geometry(settings).takes_image
    if takes_image and start is None:
        raise UserError(f"{settings.dit} starts from an image: give one with --image_path, or --i in a prompt line")
    if start is not None and not takes_image:
        raise UserError(
            f"{settings.dit} takes no start image: it is a text-to-video model. Leave --image_path out, use SkyReels' image-to-video "
            "model, or start from a video with --video_path"
        )
    if (start or source) and not settings.vae.vae:
        raise UserError("--vae is required: the image or video to start from is encoded with it")
    if source is not None and int(request.steps * (request.strength or 1)) < 1:
        raise UserError(
            f"--strength {request.strength} of {request.steps} steps is none; use at least {1 / request.steps:.2g}, or more --infer_steps"
        )
    return request
