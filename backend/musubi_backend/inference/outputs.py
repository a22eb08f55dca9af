"""Where results go: names and contents of the files of the generate verb, as musubi-tuner's Wan script has them.

`{time}_{seed}{suffix}.mp4`, `…_latent.safetensors` (key "latent", [C, F, H, W] float32), `…_000.png`; time is
`YYYYmmdd-HHMMSS-mmm`. Wan's suffix is empty for prompts from a file, "_" for a single prompt and "__{name}" for decoded latents;
HunyuanVideo has "0_" before the seed, no suffix, and "_{name}" for decoded latents.
"""

from __future__ import annotations

import datetime
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .. import events, job
from ..errors import UserError
from ..weights.safetensors_file import load, read_header, save_atomic
from .video_file import to_images, write_mp4, write_pngs

if TYPE_CHECKING:
    from torch import Tensor

    from ..architectures.card import Card
    from ..architectures.request import SampleRequest

logger = logging.getLogger(__name__)

LATENT_OUTPUTS = ("latent", "both", "latent_images")
VIDEO_OUTPUTS = ("video", "both")
IMAGE_OUTPUTS = ("images", "latent_images")
LATENT_KEY = "latent"


@dataclass(frozen=True)
class LatentFile:
    """A saved latent: [C, F, H, W] float32, the text metadata written with it, and the seed from there (0 if none)."""

    latents: Tensor
    metadata: dict[str, str]
    seed: int


def describe(request: SampleRequest) -> dict[str, str]:
    """What a result was made with, under musubi-tuner's metadata names."""
    described = {
        "seeds": str(request.seed),
        "prompt": request.prompt,
        "negative_prompt": request.negative_prompt,
        "height": str(request.height),
        "width": str(request.width),
        "video_length": str(request.frames),
        "infer_steps": str(request.steps),
        "guidance_scale": str(request.guidance.scale),
        "flow_shift": str(request.flow_shift),
        "sample_solver": request.sampler,
    }
    if request.guidance_high_noise is not None:
        described["guidance_scale_high_noise"] = str(request.guidance_high_noise.scale)
    if request.embedded_guidance is not None:
        described["embedded_cfg_scale"] = str(request.embedded_guidance)
    return described


def new_stem(folder: Path, seed: int, index: str = "") -> str:
    """`{time}_{index}{seed}`, at a time no file in the folder has yet."""
    moment = datetime.datetime.now()
    while True:
        stem = f"{moment:%Y%m%d-%H%M%S}-{moment.microsecond // 1000:03d}_{index}{seed}"
        if not folder.is_dir() or not any(folder.glob(f"{stem}*")):
            return stem
        moment += datetime.timedelta(milliseconds=1)


def save_latents(folder: Path, stem: str, latents: Tensor, metadata: Mapping[str, str] | None) -> Path:
    """Write `{stem}_latent.safetensors`; metadata None leaves it out."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{stem}_latent.safetensors"
    save_atomic({LATENT_KEY: latents.float().cpu()}, path, metadata)
    logger.info(f"Latent saved to: {path}")
    job.emit(events.Output("latent", str(path)))
    return path


def save_video(folder: Path, name: str, video: Tensor, fps: int, metadata: Mapping[str, str] | None) -> Path:
    """Write a video [3, F, H, W] in 0..1 as `{name}.mp4`."""
    path = write_mp4(folder / f"{name}.mp4", to_images(video), fps, metadata)
    logger.info(f"Video saved to: {path}")
    job.emit(events.Output("video", str(path)))
    return path


def save_images(folder: Path, name: str, video: Tensor, metadata: Mapping[str, str] | None) -> list[Path]:
    """Write the images of a video [3, F, H, W] in 0..1 as PNG files: in a sub-folder `name` unless there is only one."""
    paths = write_pngs(folder, name, to_images(video), metadata)
    logger.info(f"Sample images saved to: {folder / name}")
    job.emit(events.Output("images", str(paths[0] if len(paths) == 1 else paths[0].parent), tuple(map(str, paths))))
    return paths


def load_latents(path: str | Path, card: Card) -> LatentFile:
    """Read a saved latent. UserError where the file is not one, or is of a model with other latent channels."""
    header = read_header(path)
    found = header.tensors.get(LATENT_KEY)
    if found is None:
        known = ", ".join(list(header.tensors)[:3])
        raise UserError(f'{path}: no tensor "{LATENT_KEY}" in this file (it has {known}); give a file written with --output_type latent')
    if len(found.shape) != card.latent_rank or found.shape[0] != card.latent_channels:
        sides = "frames, height, width" if card.latent_rank == 4 else "height, width"
        raise UserError(f"{path}: latents of shape {list(found.shape)}; expected [{card.latent_channels}, {sides}]")
    seed = header.metadata.get("seeds", "0")
    return LatentFile(load(path)[LATENT_KEY].float(), header.metadata, int(seed) if seed.isdigit() else 0)
