"""Saving videos to ComfyUI's output folder in the format one wants."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from ..backend.musubi_backend.atomic import replacing
from ..backend.musubi_backend.errors import UserError
from ..backend.musubi_backend.options.argv import to_argv
from .jobs import guard
from .jobs.follow import run_tool
from .spec import Host, Input, Node, NodeSpec, Output, Result

FORMATS = ("mp4", "webm", "gif", "png")
_being_written: set[Path] = set()


class VideoOutput(Node):
    spec = NodeSpec(
        id="MusubiTuner_VideoOutput",
        display_name="Video Output",
        category="MusubiTuner/Video",
        description="Save a video to ComfyUI's output folder as mp4, webm, gif, or as one png per frame.",
        inputs=(
            Input("video", "VIDEO", "The video to save"),
            Input("filename_prefix", "STRING", "Beginning of the file name; may start with folders: videos/dog gives "
                "videos/dog_00001.mp4.", default="musubi_tuner/video"),
            Input("format", "COMBO", "mp4 (H.264) plays everywhere; webm (VP9) on web pages; gif loops; png is lossless, one file "
                "per frame.",
                  default="mp4", choices=FORMATS),
            Input("fps", "INT", "Frames per second. 0: as in the video.", default=0, minimum=0, maximum=240, off=0),
        ),
        outputs=(Output("path", "STRING", "The saved file, or the folder of the png files"),),
        is_output=True,
    )  # fmt: skip

    def validate(self, host: Host, **constants: Any) -> str | None:
        if "filename_prefix" in constants:
            _prefix(host, constants["filename_prefix"])
        return None

    async def run(self, host: Host, **inputs: Any) -> Result:
        source = host.video_file(inputs["video"])
        target = _next_path(_prefix(host, inputs["filename_prefix"]), inputs["format"])
        _being_written.add(target)  # other nodes run while the converter does
        try:
            return await self._save(host, source, target, inputs)
        finally:
            _being_written.discard(target)

    async def _save(self, host: Host, source: Path, target: Path, inputs: dict[str, Any]) -> Result:
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.suffix.lower() == target.suffix and not inputs["fps"]:
            with replacing(target) as part:
                shutil.copyfile(source, part)
        else:
            values = {"input": str(source), "output": str(target), "format": inputs["format"], "fps": inputs["fps"] or None}
            await run_tool(host, "video_convert", to_argv("video_convert", values), foreign=False, gpu=False)
        written = _written(target)
        if not written:
            raise UserError(f"nothing was written to {target}")
        path = target if target.exists() else written[0]
        return Result((str(path),), text=str(path), shown=written, files=(path,))


def _written(target: Path) -> tuple[Path, ...]:
    """The files of `target`: itself, the png files in it, or the one picture that a single frame becomes."""
    if target.is_file():
        return (target,)
    single = _single(target)
    return tuple(sorted(target.glob("*.png"))) if target.is_dir() else ((single,) if single.is_file() else ())


def _single(target: Path) -> Path:
    return target.with_name(f"{target.name}_000.png")


def _prefix(host: Host, text: str) -> Path:
    """The path that the prefix means, inside the output folder and nowhere else."""
    parts = [part for part in text.replace("\\", "/").split("/") if part]
    if not parts:
        raise UserError("filename_prefix is empty")
    names = [guard.plain_name(part, "filename_prefix") for part in parts]
    path = host.output_dir.joinpath(*names)
    if not guard.is_inside(path.parent, [host.output_dir]):
        raise UserError(f"filename_prefix: {text!r} leads out of {host.output_dir}")
    return path


def _next_path(prefix: Path, kind: str) -> Path:
    """The first free number after the prefix; png gets a folder."""
    number = 1
    while True:
        stem = f"{prefix.name}_{number:05d}"
        path = prefix.parent / (stem if kind == "png" else f"{stem}.{kind}")
        if path not in _being_written and not path.exists() and not _single(path).exists():
            return path
        number += 1
