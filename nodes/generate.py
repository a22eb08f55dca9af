"""The generator nodes: text, pictures and videos to video with any number of LoRAs, model loading included."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from ..backend.musubi_backend.architectures import cards
from ..backend.musubi_backend.architectures.card import Card
from ..backend.musubi_backend.errors import UserError
from ..backend.musubi_backend.options.argv import to_argv
from ..backend.musubi_backend.options.option import GENERATE
from ..backend.musubi_backend.options.registry import tool_names
from . import content, loras, pictures
from .cache import DEVICES
from .jobs.config import engine_stamp
from .jobs.folder import JobFolder
from .jobs.follow import run_tool
from .models import MODELS, WITH_EXPERTS, check_architecture, model_values, wan_task
from .pictures import CONTROL_IMAGES, CONTROL_MASKS, CONTROL_VIDEO, END, SOURCE_VIDEO, START, Source
from .spec import Host, Input, Node, NodeSpec, Output, Result
from .widgets import UNSET, settings, widget

SUFFIXES = (".mp4", ".png")
ATTENTION = ("sdpa", "torch", "flash", "xformers")
_LORAS = 4
TEXT_ONLY = 16  # input channels of a transformer that takes noise alone


def size_inputs(width: int = 832, height: int = 480) -> tuple[Input, Input]:
    """Width and height of what is generated."""
    return (
        Input("width", "INT", "Width of the video; multiples of 16.", default=width, minimum=16, maximum=8192, step=16),
        Input("height", "INT", "Height of the video; multiples of 16.", default=height, minimum=16, maximum=8192, step=16),
    )


def device_input(tool: str) -> Input:
    return widget(tool, "device", kind="COMBO", choices=DEVICES, default=UNSET, off=UNSET, advanced=True)


def _spec(name: str, title: str, description: str, inputs: tuple[Input, ...]) -> NodeSpec:
    """The specification of one architecture's generator."""
    return NodeSpec(
        id=f"MusubiTuner_{name}Generator",
        display_name=f"{title} Generator",
        category="MusubiTuner/Generate",
        description=f"{description} The models are loaded in the backend, not in ComfyUI.",
        inputs=inputs,
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

    def validate(self, host: Host, **constants: Any) -> str | None:
        if "prompt" in constants and not constants["prompt"].strip():
            return "prompt is empty: say what the video shows"
        pictures.check_paths(host, self.sources, constants)
        return size_problem(constants) or length_problem(constants, self.card)

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
        }

    async def run(self, host: Host, **inputs: Any) -> Result:
        check_architecture(self.card, inputs["models"], self.spec.display_name)
        self.check_task(inputs["models"], inputs)
        tool = tool_names(self.card)[GENERATE]
        chosen = self.values(host, inputs)
        target = host.temp_dir / "musubi_tuner"
        target.mkdir(parents=True, exist_ok=True)
        job_folder = JobFolder.create(host.home, tool)
        chosen |= pictures.values(host, self.sources, inputs, job_folder.path / "inputs")
        output = fresh_folder(target)
        job = await run_tool(host, tool, to_argv(tool, {**chosen, "save_path": str(output)}), folder=job_folder)
        made = results(output)
        if not made:
            raise UserError(f"{tool} wrote no video. The whole log: {job.folder.log}")
        path = made[0]
        return Result((host.video(path), host.frames(path), str(path)), text=str(path), shown=(path,), files=(path,))


def size_problem(constants: dict[str, Any]) -> str | None:
    for side in ("width", "height"):
        if constants.get(side, 16) % 16:
            return f"{side}: {constants[side]} is not a multiple of 16; nearest is {round(constants[side] / 16) * 16}"
    return None


def length_problem(constants: dict[str, Any], card: Card) -> str | None:
    length, stride = constants.get("video_length", 1), card.frame_stride
    if length and (length - 1) % stride:
        return f"video_length: {length} is not {stride}n+1; nearest is {round((length - 1) / stride) * stride + 1}"
    return None


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


_WAN = tool_names(cards()["wan"])[GENERATE]


def _wan_tasks() -> dict[str, tuple[str, ...]]:
    """Option of a picture -> the tasks of Wan that can take it."""
    all_tasks = cards()["wan"].tasks
    with_picture = tuple(task.name for task in all_tasks if task.in_dim > TEXT_ONLY)
    one_frame = tuple(task.name for task in all_tasks if task.start_image and not task.control)
    control = tuple(task.name for task in all_tasks if task.control)
    return {
        START.option: with_picture,
        END.option: with_picture,
        CONTROL_VIDEO.option: control,
        CONTROL_IMAGES.option: one_frame,
        CONTROL_MASKS.option: one_frame,
    }


class WanVideoGenerator(VideoGenerator):
    card = cards()["wan"]
    sources = (START, END, CONTROL_VIDEO, CONTROL_IMAGES, CONTROL_MASKS)
    spec = _spec(
        "WanVideo",
        "Wan Video",
        "Generate a video (or with one frame a picture) from text, from a first and a last frame, or after a control video, with LoRAs. "
        "Which pictures it takes follows from the task of the models.",
        (
            Input("models", MODELS, "From Wan Model Paths"),
            widget(_WAN, "prompt", multiline=True),
            widget(_WAN, "negative_prompt", multiline=True),
            *size_inputs(),
            widget(_WAN, "video_length", 81, step=4),
            widget(_WAN, "fps"),
            widget(_WAN, "infer_steps", off=0),
            widget(_WAN, "guidance_scale", off=-1.0),
            widget(_WAN, "flow_shift", off=0.0),
            widget(_WAN, "seed", 0, maximum=2**32 - 1),
            widget(_WAN, "sample_solver"),
            *loras.inputs(_LORAS),
            widget(_WAN, "cfg_skip_mode"),
            widget(_WAN, "cfg_apply_ratio", off=-1.0),
            widget(_WAN, "slg_layers"),
            widget(_WAN, "slg_mode"),
            widget(_WAN, "slg_scale"),
            widget(_WAN, "slg_start"),
            widget(_WAN, "slg_end"),
            widget(_WAN, "cpu_noise"),
            widget(_WAN, "trim_tail_frames"),
            widget(_WAN, "attn_mode", "sdpa", choices=(*ATTENTION[:3], "flash3", "xformers"), advanced=True),
            widget(_WAN, "vae_cache_cpu"),
            device_input(_WAN),
            *pictures.sockets_and_paths(sources, _wan_tasks()),
            widget(_WAN, "one_frame_inference", name="one_frame", tasks=_wan_tasks()[CONTROL_IMAGES.option]),
            widget(_WAN, "guidance_scale_high_noise", off=-1.0, tasks=WITH_EXPERTS),
            widget(_WAN, "timestep_boundary", off=-1.0, tasks=WITH_EXPERTS),
            *loras.inputs(2, "high_", " to the high-noise model of Wan2.2", hidden=True, tasks=WITH_EXPERTS),
            widget(_WAN, "offload_inactive_dit", tasks=WITH_EXPERTS),
            widget(_WAN, "lazy_loading", tasks=WITH_EXPERTS),
            widget(_WAN, "fp8"),
            widget(_WAN, "fp8_scaled"),
            widget(_WAN, "fp8_t5"),
            widget(_WAN, "blocks_to_swap", off=0),
        ),
    )

    def validate(self, host: Host, **constants: Any) -> str | None:
        layers = constants.get("slg_layers", "")
        if layers and not all(part.strip().isdigit() for part in layers.split(",")):
            return f"slg_layers: {layers!r} is not a list of block numbers such as 9,10"
        return super().validate(host, **constants)

    def check_task(self, models: dict[str, Any], inputs: dict[str, Any]) -> None:
        task = models["task"]
        wan_pictures_problem(task, pictures.given(self.sources, inputs), bool(inputs["one_frame"]))
        for name in ("high_lora_1", "high_lora_2"):
            if loras.is_chosen(inputs, name) and wan_task(task).boundary is None:
                raise UserError(f"{name} is for the high-noise model of Wan2.2; task {task} has none")

    def own_values(self, host: Host, inputs: dict[str, Any]) -> dict[str, Any]:
        return loras.options(host, inputs, "high_", "_high_noise")


def wan_pictures_problem(name: str, have: set[str], one_frame: bool) -> None:
    """UserError where `have` (options of pictures) is not what a Wan task takes."""
    task, takers = wan_task(name), _wan_tasks()
    controls = {CONTROL_IMAGES.option, CONTROL_MASKS.option}
    needed = {
        source.option for source, wanted in ((START, task.start_image), (END, task.last_frame), (CONTROL_VIDEO, task.control)) if wanted
    }
    taken = {option for option, names in takers.items() if name in names} - (set() if one_frame else controls)
    words = {source.option: source.socket for source in WanVideoGenerator.sources}
    missing = [words[option] for option in sorted(needed - have)]
    if missing:
        raise UserError(f"task {name} needs {' and '.join(missing)}: connect it, or fill in its path")
    surplus = [words[option] for option in sorted(have - taken)]
    if surplus:
        hint = "set one_frame" if name in takers[CONTROL_IMAGES.option] and not one_frame else "choose a task that does"
        raise UserError(f"task {name} takes no {' and '.join(surplus)}: disconnect it, or {hint}")


_HV = tool_names(cards()["hv"])[GENERATE]


class HunyuanVideoGenerator(VideoGenerator):
    card = cards()["hv"]
    sources = (START, SOURCE_VIDEO)
    spec = _spec(
        "HunyuanVideo",
        "HunyuanVideo",
        "Generate a video (or with one frame a picture) from text, from a first frame with an image-to-video model (SkyReels), or by "
        "changing a video, with LoRAs.",
        (
            Input("models", MODELS, "From HunyuanVideo Model Paths"),
            widget(_HV, "prompt", multiline=True),
            widget(_HV, "negative_prompt", multiline=True),
            *size_inputs(960, 544),
            widget(_HV, "video_length", 129, step=4),
            widget(_HV, "fps"),
            widget(_HV, "infer_steps"),
            widget(_HV, "embedded_cfg_scale"),
            widget(_HV, "guidance_scale"),
            widget(_HV, "flow_shift"),
            widget(_HV, "seed", 0, maximum=2**32 - 1),
            *loras.inputs(_LORAS),
            widget(_HV, "strength"),
            widget(_HV, "split_attn"),
            widget(_HV, "exclude_single_blocks"),
            widget(_HV, "attn_mode", "sdpa", choices=ATTENTION, advanced=True),
            device_input(_HV),
            *pictures.sockets_and_paths(sources),
            widget(_HV, "fp8"),
            widget(_HV, "blocks_to_swap", off=0),
        ),
    )

    def check_task(self, models: dict[str, Any], inputs: dict[str, Any]) -> None:
        have = pictures.given(self.sources, inputs)
        from_picture = models.get("dit_in_channels", 16) > TEXT_ONLY
        if from_picture and START.option not in have:
            raise UserError("this transformer is an image-to-video model: connect start_image, or fill in start_image_path")
        if START.option in have and not from_picture:
            raise UserError("start_image needs an image-to-video transformer (SkyReels, 32 input channels); this one takes text alone")
        if {START.option, SOURCE_VIDEO.option} <= have:
            raise UserError("start_image and source_video exclude each other: use one of them")
