"""Turns a video file, or a folder of PNG files, into another kind of video: mp4, webm, gif, or a folder of PNG files.

For whoever shows results and cannot count on a video library of their own.
"""

from __future__ import annotations

from argparse import Namespace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

from .. import events, job, place
from ..errors import UserError
from ..inference.video_file import read_images, write_gif, write_mp4, write_pngs, write_webm
from .settings import VideoConvertSettings

if TYPE_CHECKING:
    from ..architectures.protocol import Architecture

FORMATS = ("mp4", "webm", "gif", "png")


def run(args: Namespace, architecture: Architecture | None = None) -> None:
    """--input, --output, --format (else the ending of --output), --fps (else as in the input). Prints what was written."""
    settings = VideoConvertSettings.read(args)
    written = convert(Path(settings.input), Path(settings.output), settings.format, settings.fps)
    job.emit(events.Output("video", str(written)))
    print(written)


def convert(source: Path, target: Path, kind: str | None = None, fps: int | None = None) -> Path:
    """Write `source` as `target` and return it; for png, `target` is the folder. UserError for what cannot be read."""
    kind = kind or target.suffix.removeprefix(".").lower()
    if kind not in FORMATS:
        raise UserError(f'--format "{kind}": unknown; choose one of {", ".join(FORMATS)}')
    place.try_folder(target.parent, [f"{target.name}/00000.png" if kind == "png" else target.name], f"--output {target}")
    images, source_fps = read_images(source)
    rate = Fraction(fps) if fps else source_fps
    if kind == "png":
        write_pngs(target.parent, target.name, images)
        return target
    if kind == "gif":
        return write_gif(target, images, rate)
    return (write_mp4 if kind == "mp4" else write_webm)(target, images, rate)
