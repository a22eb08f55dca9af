"""Videos in and out: frames of a video for the graph, and saving to ComfyUI's output folder in the format one wants."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..backend.musubi_backend import content, place
from ..backend.musubi_backend.architectures import default_card
from ..backend.musubi_backend.atomic import replacing
from ..backend.musubi_backend.counted import counted
from ..backend.musubi_backend.dataset.media import VIDEO_EXTENSIONS
from ..backend.musubi_backend.errors import UserError
from ..backend.musubi_backend.inference.side_by_side import side_by_side
from ..backend.musubi_backend.inference.video_file import Selection, copy_streams, read_images
from ..backend.musubi_backend.options.argv import to_argv
from .jobs import guard
from .jobs.follow import run_tool
from .spec import Host, Input, Node, NodeSpec, Output, Problem, Result, refused
from .widgets import NONE

if TYPE_CHECKING:
    import numpy as np

FORMATS = ("mp4", "webm", "gif", "png")
_being_written: set[Path] = set()


class VideoInput(Node):
    spec = NodeSpec(
        id="MusubiTuner_VideoInput",
        display_name="Video Input",
        category="MusubiTuner/Video",
        description="Load a video, or some of its frames, from ComfyUI's input folder or a path: to start from, to follow, or to look at.",
        inputs=(
            Input("path", "STRING", "A video file or a folder of png files. Relative paths start in ComfyUI's input folder, or else in "
                "this pack's home folder. Empty: the video chosen in `file`.", default=""),
            Input("start", "INT", "Number of the first frame to take, counted from 0.", default=0, minimum=0, maximum=10**7),
            Input("count", "INT", "How many frames to take at most. 0: all. All of a long video need much memory.",
                  default=0, minimum=0, maximum=10**6),
            Input("stride", "INT", "Take only every N frames.", default=1, minimum=1, maximum=10**4),
            Input("fps", "FLOAT", "Frames per second to take from the video, before `start`, `count` and `stride` count; "
                f"{default_card().fps} is what {default_card().family} works at. 0: every frame.",
                  default=0.0, minimum=0.0, maximum=240.0, step=0.001),
            Input("file", "COMBO", "A video in ComfyUI's input folder, used where `path` is empty.", default=NONE,
                  choices=lambda host: [NONE, *host.input_files(VIDEO_EXTENSIONS)], upload="video"),
        ),
        outputs=(Output("frames", "IMAGE", "The frames"), Output("video", "VIDEO", "The frames as a video, without sound"),
                 Output("count", "INT", "How many frames"), Output("fps", "FLOAT", "Frames per second of them")),
    )  # fmt: skip

    def validate(self, host: Host, **constants: Any) -> Iterator[Problem]:
        if _is_told(constants):
            chosen = "path" if constants.get("path", "").strip() or constants.get("file", NONE) == NONE else "file"
            yield from refused(chosen, _video_path, host, constants)

    def fingerprint(self, host: Host, **constants: Any) -> str:
        if not _is_told(constants):
            return ""
        path = _video_path(host, constants)
        return content.of_folder(path) if path.is_dir() else content.of_files([path])

    async def run(self, host: Host, **inputs: Any) -> Result:
        path = _video_path(host, inputs)
        selection = Selection(**{name: inputs[name] for name in ("start", "count", "stride", "fps")})
        images, rate = await asyncio.to_thread(read_images, path, selection)
        name = content.digest(content.stamp(path), vars(selection))
        folder = host.temp_dir / "musubi_tuner" / f"input_{name}"
        frames = await asyncio.to_thread(host.images, images, folder)
        video = await asyncio.to_thread(host.clip, images, rate, folder / "video.mp4")
        height, width = images[0].shape[:2]
        text = f"{counted(len(images), 'frame')} of {width}x{height}" + (f", {float(rate):g} per second" if len(images) > 1 else "")
        files = tuple(Path(value) for value in (frames, video) if isinstance(value, str))
        return Result((frames, video, len(images), float(rate)), text=text, files=files)


def _is_told(constants: dict[str, Any]) -> bool:
    """True where the widgets say which video it is, and no link does."""
    return bool(str(constants.get("path", "")).strip()) or ("path" in constants and "file" in constants)


def _video_path(host: Host, values: dict[str, Any]) -> Path:
    """The file or folder that `path`, or else `file`, names. UserError for neither and for what is not allowed."""
    path, name = str(values.get("path") or "").strip(), str(values.get("file") or NONE)
    if not path and name == NONE:
        raise UserError("path is empty and no file is chosen: enter a path, or choose a video of the input folder in file")
    if path:
        return guard.inside(path, host.allowed_roots(), "path", relative_to=(host.input_dir, host.home))
    return guard.inside(name, [host.input_dir], "file", relative_to=(host.input_dir,))


class VideoComparison(Node):
    spec = NodeSpec(
        id="MusubiTuner_VideoComparison",
        display_name="Video Comparison",
        category="MusubiTuner/Video",
        description="Put videos next to each other under titles: a clip, what is made without a LoRA, and what is made with it.",
        inputs=(
            Input("video_1", "VIDEO", "The video on the left. Its frame rate becomes that of all."),
            Input("video_2", "VIDEO", "The video next to it"),
            Input("video_3", "VIDEO", "A third one", optional=True),
            Input("video_4", "VIDEO", "A fourth one", optional=True),
            Input("titles", "STRING", "What stands above each video, one per line, from the left.", default="", multiline=True),
            Input("height", "INT", "Height all videos are brought to, in pixels. 0: that of the tallest.",
                  default=0, minimum=0, maximum=4096),
        ),
        outputs=(Output("video", "VIDEO", "All of them in one"),),
    )  # fmt: skip

    async def run(self, host: Host, **inputs: Any) -> Result:
        given = [inputs[name] for name in ("video_1", "video_2", "video_3", "video_4") if inputs.get(name) is not None]
        sources = [host.video_file(video) for video in given]
        titles = [*inputs["titles"].split("\n"), *[""] * len(sources)][: len(sources)]
        images, rate = await asyncio.to_thread(_compared, sources, titles, inputs["height"])
        name = content.digest([content.stamp(source) for source in sources], [titles, inputs["height"]])
        video = await asyncio.to_thread(host.clip, images, rate, host.temp_dir / "musubi_tuner" / f"comparison_{name}" / "video.mp4")
        height, width = images[0].shape[:2]
        files = (Path(video),) if isinstance(video, str) else ()
        return Result((video,), text=f"{counted(len(sources), 'video')} · {width}x{height}", files=files)


def _compared(sources: Sequence[Path], titles: Sequence[str], height: int) -> tuple[list[np.ndarray], Fraction]:
    first, rate = read_images(sources[0])
    others = [read_images(source, Selection(fps=float(rate)))[0] for source in sources[1:]]
    return list(side_by_side([first, *others], titles, height)), rate


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

    def validate(self, host: Host, **constants: Any) -> Iterator[Problem]:
        if "filename_prefix" in constants:
            yield from refused("filename_prefix", output_prefix, host, constants["filename_prefix"])

    async def run(self, host: Host, **inputs: Any) -> Result:
        source = host.video_file(inputs["video"])
        target = next_path(output_prefix(host, inputs["filename_prefix"]), "" if inputs["format"] == "png" else f".{inputs['format']}")
        _being_written.add(target)  # other nodes run while the converter does
        try:
            return await self._save(host, source, target, inputs)
        finally:
            _being_written.discard(target)

    async def _save(self, host: Host, source: Path, target: Path, inputs: dict[str, Any]) -> Result:
        place.try_folder(target.parent, [f"{target.name}/00000.png"] if inputs["format"] == "png" else [target.name], "filename_prefix")
        if source.suffix.lower() == target.suffix and not inputs["fps"]:
            copy = shutil.copyfile if host.keeps_metadata else copy_streams
            with replacing(target) as part:
                await asyncio.to_thread(copy, source, part)
        else:
            values = {"input": str(source), "output": str(target), "format": inputs["format"], "fps": inputs["fps"] or None}
            await run_tool(host, "video_convert", to_argv("video_convert", values), foreign=False, gpu=False)
        written = _written(target)
        if not written:
            raise UserError(f"nothing was written to {target}")
        path = target if target.exists() else written[0]
        return Result((str(path),), text=str(path), shown=written, files=(path,))


def _written(target: Path) -> tuple[Path, ...]:
    """The files of `target`: itself, the png files in it, or the one image that a single frame becomes."""
    if target.is_file():
        return (target,)
    single = _single(target)
    return tuple(sorted(target.glob("*.png"))) if target.is_dir() else ((single,) if single.is_file() else ())


def _single(target: Path) -> Path:
    return target.with_name(f"{target.name}_000.png")


def output_prefix(host: Host, text: str) -> Path:
    """The path that the prefix means, inside the output folder and nowhere else."""
    parts = [part for part in text.replace("\\", "/").split("/") if part]
    if not parts:
        raise UserError("filename_prefix is empty")
    names = [guard.plain_name(part, "filename_prefix") for part in parts]
    path = host.output_dir.joinpath(*names)
    if not guard.is_inside(path.parent, [host.output_dir]):
        raise UserError(f"filename_prefix: {text!r} leads out of {host.output_dir}")
    return path


def next_path(prefix: Path, ending: str) -> Path:
    """The first free number after the prefix, with an ending such as ".mp4"; a folder has none."""
    number = 1
    while True:
        stem = f"{prefix.name}_{number:05d}"
        path = prefix.parent / f"{stem}{ending}"
        if path not in _being_written and not path.exists() and not _single(path).exists():
            return path
        number += 1
