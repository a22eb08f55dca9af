"""The generator nodes: text, pictures and videos to video with any number of LoRAs, model loading included."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

from ..backend.musubi_backend import content, place
from ..backend.musubi_backend.architectures import cards
from ..backend.musubi_backend.architectures.card import Card
from ..backend.musubi_backend.errors import UserError
from ..backend.musubi_backend.options.argv import to_argv
from ..backend.musubi_backend.options.option import GENERATE
from ..backend.musubi_backend.options.registry import tool_names
from . import loras, pictures
from .cache import DEVICES
from .jobs.config import engine_stamp
from .jobs.folder import JobFolder
from .jobs.follow import run_tool
from .models import check_architecture, model_values
from .pictures import Source
from .sizes import length_problems, size_problems
from .spec import Host, Input, Node, NodeSpec, Output, Problem, Result
from .widgets import UNSET, settings, widget

SUFFIXES = (".mp4", ".png")
LORAS = 4
_GENERATE = tool_names(cards()["wan"])[GENERATE]
TEXT_ONLY = 16  # input channels of a transformer that takes noise alone


def size_inputs(width: int = 832, height: int = 480) -> tuple[Input, Input]:
    """Width and height of what is generated."""
    return (
        Input("width", "INT", "Width of the video; multiples of 16.", default=width, minimum=16, maximum=8192, step=16),
        Input("height", "INT", "Height of the video; multiples of 16.", default=height, minimum=16, maximum=8192, step=16),
    )


def device_input(tool: str) -> Input:
    return widget(tool, "device", kind="COMBO", choices=DEVICES, default=UNSET, off=UNSET, advanced=True)


def more_memory_inputs(tool: str) -> tuple[Input, ...]:
    """What trades memory and start-up for speed."""
    return (widget(tool, "use_pinned_memory_for_block_swap"), widget(tool, "compile"))


def generator_spec(name: str, title: str, description: str, inputs: tuple[Input, ...]) -> NodeSpec:
    """The specification of one architecture's generator."""
    return NodeSpec(
        id=f"MusubiTuner_{name}Generator",
        display_name=f"{title} Generator",
        category="MusubiTuner/Generate",
        description=f"{description} The models are loaded in the backend, not in ComfyUI.",
        inputs=(*inputs, widget(_GENERATE, "skip_mismatched")),
        outputs=(
            Output("video", "VIDEO", "The video"),
            Output("frames", "IMAGE", "Its frames"),
            Output("path", "STRING", "Its file, in the temporary folder until Video Output saves it"),
        ),
        is_output=True,
    )


class VideoGenerator(Node):
    """What all architectures' generators do. A subclass names its card, what it can start from, and checks of its own."""

    card: ClassVar[Card]
    sources: ClassVar[tuple[Source, ...]] = ()

    def validate(self, host: Host, **constants: Any) -> Iterator[Problem]:
        if "prompt" in constants and not constants["prompt"].strip():
            yield Problem("prompt", "prompt is empty: say what the video shows")
        yield from pictures.problems(host, self.sources, constants)
        yield from (*size_problems(constants), *length_problems(constants, self.card.frame_stride))

    def fingerprint(self, host: Host, **constants: Any) -> str:
        files = [*loras.files(host, constants)[0], *loras.files(host, constants, "high_")[0]]
        return f"{engine_stamp(host.home)} {content.of_files([*files, *pictures.stamps(host, self.sources, constants)])}"

    def check_task(self, models: dict[str, Any], inputs: dict[str, Any]) -> None:
        """UserError where the pictures do not go with the model."""

    def own_values(self, host: Host, inputs: dict[str, Any]) -> dict[str, Any]:
        """option name -> value of what only this architecture has."""
        return {}

    def values(self, host: Host, inputs: dict[str, Any]) -> dict[str, Any]:
        """option name -> value of a generation, without its pictures and without where it writes."""
        return {
            **model_values(self.card, inputs["models"], tool_names(self.card)[GENERATE]),
            "video_size": [inputs["height"], inputs["width"]],
            **settings(self.spec.inputs, inputs),
            **loras.options(host, inputs),
            **self.own_values(host, inputs),
            **metadata_values(host),
        }

    def pictures(self, host: Host, inputs: dict[str, Any], folder: Path) -> dict[str, Any]:
        """option name -> path of what it starts from; pictures from the graph are written into `folder`."""
        return pictures.values(host, self.sources, inputs, folder)

    async def run(self, host: Host, **inputs: Any) -> Result:
        check_architecture(self.card, inputs["models"], self.spec.display_name)
        self.check_task(inputs["models"], inputs)
        tool = tool_names(self.card)[GENERATE]
        chosen = self.values(host, inputs)
        target = host.temp_dir / "musubi_tuner"
        place.try_folder(target, [], "the folder for videos")
        job_folder = JobFolder.create(host.home, tool)
        chosen |= self.pictures(host, inputs, job_folder.path / "inputs")
        output = fresh_folder(target)
        job = await run_tool(host, tool, to_argv(tool, {**chosen, "save_path": str(output)}), folder=job_folder)
        made = results(output)
        if not made:
            raise UserError(f"{tool} wrote no video. The whole log: {job.folder.log}")
        path = made[0]
        return Result((host.video(path), host.frames(path), str(path)), text=str(path), shown=(path,), files=(path,))


def metadata_values(host: Host) -> dict[str, Any]:
    """What keeps prompts and settings out of the results, where the host does not want them there."""
    return {} if host.keeps_metadata else {"no_metadata": True}


def one_frame_output(inputs: dict[str, Any]) -> dict[str, Any]:
    """One frame is written as a picture."""
    return {"output_type": "images"} if inputs["one_frame"].strip() else {}


def results(folder: Path) -> list[Path]:
    """The videos and pictures in a folder, by name."""
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)


def fresh_folder(parent: Path, stem: str = "video") -> Path:
    """A new numbered folder: ComfyUI keeps showing old results, so none is ever overwritten."""
    number = 1
    while True:
        path = parent / f"{stem}_{number:05d}"
        try:
            path.mkdir()
        except FileExistsError:
            number += 1
        else:
            return path
