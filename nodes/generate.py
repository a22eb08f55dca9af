"""The generator nodes: text, images and videos to video or images with any number of LoRAs, model loading included."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

from ..backend.musubi_backend import content, place
from ..backend.musubi_backend.architectures.card import IMAGE, VIDEO, Card, letters
from ..backend.musubi_backend.architectures.widgets import FamilyNodes, Shared, Size
from ..backend.musubi_backend.errors import UserError
from ..backend.musubi_backend.options.argv import to_argv
from ..backend.musubi_backend.options.option import GENERATE
from ..backend.musubi_backend.options.registry import tool_names
from . import experts, loras, media_inputs, sections
from .cache import DEVICES
from .families import own_inputs
from .jobs.config import engine_stamp
from .jobs.folder import JobFolder
from .jobs.follow import run_tool
from .models import MODELS, check_architecture, model_values
from .sizes import length_problems, size_problems
from .spec import Host, Input, Node, NodeSpec, Output, Problem, Result, refused
from .widgets import UNSET, settings, widget

SUFFIXES = (".mp4", ".png")
_LORAS = 4
_SHARED: dict[Shared, Callable[[Card, FamilyNodes], tuple[Input, ...]]] = {
    Shared.LORAS: lambda card, family: loras.inputs(_LORAS),
    Shared.HIGH_LORAS: lambda card, family: experts.lora_inputs(card),
    Shared.IMAGES: lambda card, family: media_inputs.sockets_and_paths(family.sources),
    Shared.DEVICE: lambda card, family: (device_input(tool_names(card)[GENERATE]),),
    Shared.SECTION_NUMBERS: lambda card, family: (sections.NUMBERS,),
    Shared.SECTION_IMAGES: lambda card, family: (sections.IMAGES,),
}


def size_inputs(width: int = 832, height: int = 480, makes: str = VIDEO) -> tuple[Input, Input]:
    """Width and height of what is generated."""
    what = makes.lower()
    return (
        Input("width", "INT", f"Width of the {what}; multiples of 16.", default=width, minimum=16, maximum=8192, step=16),
        Input("height", "INT", f"Height of the {what}; multiples of 16.", default=height, minimum=16, maximum=8192, step=16),
    )


def device_input(tool: str) -> Input:
    return widget(tool, "device", kind="COMBO", choices=DEVICES, default=UNSET, off=UNSET, advanced=True)


def _inputs(card: Card, family: FamilyNodes) -> Iterator[Input]:
    yield Input("models", MODELS, f"From {card.family} Model Paths")
    for entry in family.generator:
        if isinstance(entry, Shared):
            yield from _SHARED[entry](card, family)
        elif isinstance(entry, Size):
            yield from size_inputs(entry.width, entry.height, card.makes)
        else:
            yield from own_inputs(tool_names(card)[GENERATE], (entry,))


def _outputs(card: Card) -> tuple[Output, ...]:
    where = "in the temporary folder until it is saved"
    if card.makes == IMAGE:
        return (Output("images", "IMAGE", "The image"), Output("path", "STRING", f"Its file, {where}"))
    return (
        Output("video", "VIDEO", "The video"),
        Output("frames", "IMAGE", "Its frames"),
        Output("path", "STRING", "Its file, in the temporary folder until Video Output saves it"),
    )


def _spec(card: Card, family: FamilyNodes) -> NodeSpec:
    return NodeSpec(
        id=f"MusubiTuner_{letters(card.generator_title)}Generator",
        display_name=f"{card.generator_title} Generator",
        category="MusubiTuner/Generate",
        description=f"{family.generates} The models are loaded in the backend, not in ComfyUI.",
        inputs=tuple(_inputs(card, family)),
        outputs=_outputs(card),
        is_output=True,
    )


class Generator(Node):
    """The generator of a family; `generator` makes one of it."""

    card: ClassVar[Card]
    family: ClassVar[FamilyNodes]

    def validate(self, host: Host, **constants: Any) -> Iterator[Problem]:
        yield from (Problem(*one) for one in self.family.problems(constants))
        if "section_numbers" in constants:
            yield from refused("section_numbers", sections.numbers, constants["section_numbers"])
        if "prompt" in constants and not constants["prompt"].strip():
            yield Problem("prompt", f"prompt is empty: say what the {self.card.makes.lower()} shows")
        yield from media_inputs.problems(host, self.family.sources, constants)
        yield from (*size_problems(constants), *length_problems(constants, self.card.frame_stride))

    def fingerprint(self, host: Host, **constants: Any) -> str:
        files = [*loras.files(host, constants)[0], *loras.files(host, constants, experts.PREFIX)[0]]
        return f"{engine_stamp(host.home)} {content.of_files([*files, *media_inputs.stamps(host, self.family.sources, constants)])}"

    def check_task(self, models: dict[str, Any], inputs: dict[str, Any]) -> None:
        """UserError where images or LoRAs do not go with the model."""
        self.family.check(models, inputs, media_inputs.given(self.family.sources, inputs))
        experts.check_loras(self.card, models, inputs)

    def values(self, host: Host, inputs: dict[str, Any]) -> dict[str, Any]:
        """option name -> value of a generation, without its images and without where it writes."""
        return {
            **model_values(self.card, inputs["models"], tool_names(self.card)[GENERATE]),
            "video_size": [inputs["height"], inputs["width"]],
            **settings(self.spec.inputs, inputs),
            **loras.options(host, inputs),
            **experts.lora_values(host, inputs),
            **_one_frame_output(inputs),
            **self.family.values(inputs),
            **metadata_values(host),
        }

    def images(self, host: Host, inputs: dict[str, Any], folder: Path) -> dict[str, Any]:
        """option name -> path of what it starts from; images from the graph are written into `folder`."""
        chosen = media_inputs.values(host, self.family.sources, inputs, folder)
        return sections.with_images(host, inputs, chosen, folder) if "section_images" in inputs else chosen

    async def run(self, host: Host, **inputs: Any) -> Result:
        check_architecture(self.card, inputs["models"], self.spec.display_name)
        self.check_task(inputs["models"], inputs)
        tool = tool_names(self.card)[GENERATE]
        chosen = self.values(host, inputs)
        target = host.temp_dir / "musubi_tuner"
        place.try_folder(target, [], f"the folder for {self.card.makes.lower()}s")
        job_folder = JobFolder.create(host.home, tool)
        chosen |= self.images(host, inputs, job_folder.path / "inputs")
        output = fresh_folder(target, self.card.makes.lower())
        job = await run_tool(host, tool, to_argv(tool, {**chosen, "save_path": str(output)}), folder=job_folder)
        made = results(output)
        if not made:
            raise UserError(f"{tool} wrote no {self.card.makes.lower()}. The whole log: {job.folder.log}")
        path = made[0]
        video = () if self.card.makes == IMAGE else (host.video(path),)
        return Result((*video, host.frames(path), str(path)), text=str(path), shown=(path,), files=(path,))


def generator(card: Card, family: FamilyNodes) -> type[Generator]:
    """The node of a family."""
    spec = _spec(card, family)
    return type(spec.id.partition("_")[2], (Generator,), {"card": card, "family": family, "spec": spec})


def metadata_values(host: Host) -> dict[str, Any]:
    """What keeps prompts and settings out of the results, where the host does not want them there."""
    return {} if host.keeps_metadata else {"no_metadata": True}


def _one_frame_output(inputs: dict[str, Any]) -> dict[str, Any]:
    """One frame is written as an image."""
    return {"output_type": "images"} if inputs.get("one_frame", "").strip() else {}


def results(folder: Path) -> list[Path]:
    """The videos and images in a folder, by name."""
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
