"""Turns our nodes into ComfyUI V3 classes and offers them ComfyUI as a host.

Measured differences between ComfyUI 0.3.48 and newer that this file hides: schema arguments that an older core lacks are
dropped (it would raise TypeError).
"""

from __future__ import annotations

import gc
import inspect
import os
import tempfile
from collections.abc import Sequence
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.utils
import folder_paths
import torch
from comfy.cli_args import args
from comfy_api.latest import ComfyExtension, InputImpl, Types, io
from comfy_execution.graph_utils import ExecutionBlocker
from comfy_execution.progress import get_progress_state

from ..backend.musubi_backend.architectures import cards
from ..backend.musubi_backend.counted import counted
from ..backend.musubi_backend.errors import UserError
from ..backend.musubi_backend.place import in_words
from . import comfy_language
from .catalog import NODES
from .checks import check, choices_of, prechecked, prepared
from .comfy_errors import RunError, report, show_each_once
from .jobs import config as configuration
from .jobs.config import DEMO_MODELS
from .jobs.environment import visible_gpus
from .monitor.watch import watch
from .reuse import Kept, KeptResults, place_of
from .routes import add_routes
from .spec import ANY, Input, Node, NodeSpec, Problem, Result, Stopped, with_warnings
from .split_models import with_indexes
from .translations import translated

try:
    from server import PromptServer
except ImportError:  # ComfyUI used as a library, without its server
    PromptServer = None

_PREVIEW_SIDE = 512
_LONGEST_LINE = 110  # characters: two lines of a node as wide as ComfyUI makes it


class ComfyHost:
    """ComfyUI as seen by a running node."""

    def __init__(self, node_id: str | None = None, prompt: Any = None, extra: Any = None) -> None:
        self.node_id = node_id
        self._shows_samples = False  # the node's own part of the page does
        self._made_by = {"workflow": extra.get("workflow") if isinstance(extra, dict) else None, "prompt": prompt}
        self.home = configuration.default_home()
        self.input_dir = Path(folder_paths.get_input_directory())
        self.output_dir = Path(folder_paths.get_output_directory())
        self.temp_dir = Path(folder_paths.get_temp_directory())
        self.keeps_metadata = not args.disable_metadata
        self.warnings: list[str] = []

    def allowed_roots(self) -> list[Path]:
        user = Path(folder_paths.get_user_directory())
        own = [self.input_dir, self.output_dir, self.temp_dir, Path(folder_paths.models_dir), user, self.home]
        return [*own, *configuration.load(self.home).allowed_roots]

    def model_names(self, key: str) -> list[str]:
        names = with_indexes(folder_paths.get_filename_list(key), lambda name: folder_paths.get_full_path(key, name) is not None)
        return [*names, *(name for name in self._demo_models(key) if name not in names)]

    def model_path(self, key: str, name: str) -> Path:
        for spelling in (name, name.replace("\\", "/"), name.replace("/", os.sep)):
            path = folder_paths.get_full_path(key, spelling)
            if path:
                return Path(path)
        demo = self._demo_models(key).get(name)
        if demo is None:
            raise UserError(f"{name} is not in ComfyUI's {key} folders")
        return demo

    def _demo_models(self, key: str) -> dict[str, Path]:
        """The tiny models of the quickstart by name: offered by this pack's nodes only, as no other node could use them."""
        if key not in {part.folder for card in cards().values() for part in card.parts}:
            return {}
        return {path.name: path for path in sorted((self.home / DEMO_MODELS).glob("*.safetensors"))}

    def loras_dir(self) -> Path:
        return Path(folder_paths.get_folder_paths("loras")[0])

    def progress(self, value: float, total: float, text: str, preview: Path | None = None) -> None:
        if self.node_id is None:
            return
        image = _preview_image(preview) if preview and not self._shows_samples else None
        get_progress_state().update_progress(self.node_id, value, total, image)
        server = getattr(PromptServer, "instance", None)
        if text and server is not None:
            # one user's other pages show it too, but no page of another user, whose node of this number is another one
            server.send_progress_text(self.said(text), self.node_id, server.client_id if args.multi_user else None)

    def said(self, text: str) -> str:
        """In the language of whoever queued the prompt that runs."""
        server = getattr(PromptServer, "instance", None)
        return translated(text, comfy_language.of_client(server.client_id if server is not None else None))

    def show_job(self, job: str) -> None:
        server = getattr(PromptServer, "instance", None)
        if self.node_id is None or server is None:
            return
        self._shows_samples = True
        server.send_sync("musubi_tuner.node", {"node": self.node_id, "job": job}, server.client_id)

    def begins(self, job: str) -> None:
        server = getattr(PromptServer, "instance", None)
        if self.node_id is not None and server is not None:
            server.send_sync("musubi_tuner.begins", {"node": self.node_id, "job": job}, server.client_id)

    def check_interrupted(self) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()

    def free_gpu_memory(self) -> str:
        comfy.model_management.unload_all_models()
        gc.collect()
        comfy.model_management.soft_empty_cache()
        device = comfy.model_management.get_torch_device()
        if device.type == "cpu":
            return ""
        return f"{comfy.model_management.get_free_memory(device) / 2**30:.1f} GB of GPU memory are free"

    def video(self, path: Path) -> Any:
        return InputImpl.VideoFromFile(str(path))

    def frames(self, path: Path) -> Any:
        return InputImpl.VideoFromFile(str(path)).get_components().images

    def lora_model(self, path: Path) -> Any:
        return comfy.utils.load_torch_file(str(path), safe_load=True)

    def video_file(self, video: Any) -> Path:
        source = video.get_stream_source()
        if isinstance(source, str):
            return Path(source)
        self.temp_dir.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(suffix=".mp4", dir=self.temp_dir)
        os.close(handle)
        video.save_to(name)
        return Path(name)

    def image_files(self, images: Any, folder: Path, name: str) -> list[Path]:
        from PIL import Image

        folder.mkdir(parents=True, exist_ok=True)
        files = []
        for number, image in enumerate(images):
            pixels = (image.clamp(0, 1) * 255).round().byte().cpu().numpy()
            files.append(folder / f"{name}_{number:03d}.png")
            Image.fromarray(pixels).save(files[-1])
        return files

    def images(self, arrays: Sequence[Any], folder: Path) -> Any:
        import numpy as np

        return torch.from_numpy(np.stack(arrays)).float() / 255

    def clip(self, arrays: Sequence[Any], fps: Fraction, path: Path) -> Any:
        return InputImpl.VideoFromComponents(Types.VideoComponents(images=self.images(arrays, path.parent), audio=None, frame_rate=fps))

    def input_files(self, suffixes: tuple[str, ...]) -> list[str]:
        if not self.input_dir.is_dir():
            return []
        return sorted(path.name for path in self.input_dir.iterdir() if path.suffix.lower() in suffixes and path.is_file())

    def gpus(self) -> list[str]:
        if comfy.model_management.get_torch_device().type != "cuda":
            return []
        return visible_gpus(torch.cuda.device_count())

    def workflow(self) -> dict[str, Any] | None:
        return self._made_by if self.keeps_metadata and self._made_by["prompt"] else None

    def not_yet(self, why: str) -> Any:
        return ExecutionBlocker(None)  # with a message, each node behind it would be shown as failed


_RESULTS = KeptResults()


class MusubiTunerExtension(ComfyExtension):
    def __init__(self) -> None:
        """Answer our own web pages and show each mistake once. Here, as ComfyUI before 0.14 never calls `on_load`."""
        server = getattr(PromptServer, "instance", None)
        if server is not None:
            comfy_language.follow(server)
            add_routes(server.routes, ComfyHost)
            watch(server, ComfyHost)
        show_each_once()

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [_comfy_class(node()) for node in NODES]


def _comfy_class(node: Node) -> type[io.ComfyNode]:
    spec = node.spec

    class Adapted(io.ComfyNode):
        @classmethod
        def define_schema(cls) -> io.Schema:
            return _schema(spec)

        @classmethod
        def validate_inputs(cls, **kwargs: Any) -> bool | str:
            problems = check(node, ComfyHost(), _constants(spec, kwargs))
            return report([Problem(one.input, translated(one.text, comfy_language.of_request())) for one in problems])

        @classmethod
        def fingerprint_inputs(cls, **kwargs: Any) -> str:
            host = ComfyHost()
            return f"{_RESULTS.generation(_place(cls), host)} {node.fingerprint(host, **_constants(spec, kwargs))}"

        @classmethod
        async def execute(cls, **kwargs: Any) -> io.NodeOutput:
            host = ComfyHost(cls.hidden.unique_id, cls.hidden.prompt, cls.hidden.extra_pnginfo)
            try:
                inputs = prepared(node, host, _unlisted(spec, kwargs))
                kept = Kept.before(node, host, inputs)
                result = await node.run(host, **inputs)
            except Stopped as stopped:
                host.progress(0, 1, stopped.line)
                raise comfy.model_management.InterruptProcessingException from None
            except (UserError, OSError) as error:
                said = host.said(str(error) if isinstance(error, UserError) else in_words(error))
                host.progress(0, 1, f"failed: {_line(said)}")
                raise RunError(said) from (None if isinstance(error, UserError) else error)
            _RESULTS.remember(_place(cls), get_progress_state().prompt_id, kept.after(result))
            text = host.said(with_warnings(result.text, host.warnings))  # before it is cut: half a sentence has no translation
            line = host.said(result.line) or _line(text)
            if line and host.warnings:
                line += f" · {counted(len(host.warnings), 'note')}"
            if line:
                host.progress(1, 1, line)
            return io.NodeOutput(*result.values, ui=_shown(host, result, {"line": host.said(line), "text": text} if text != line else {}))

    late = [entry.name for entry in spec.inputs if entry.late]

    @classmethod  # type: ignore[misc]
    def check_lazy_status(cls: Any, **kwargs: Any) -> list[str]:
        """ComfyUI makes lazy inputs when they are asked for here, and calls this again when they are there."""
        if all(kwargs.get(name) is None for name in late):
            try:
                prechecked(node, ComfyHost(), kwargs)
            except UserError as error:
                raise RunError(ComfyHost().said(str(error))) from None
        return late

    if late:
        Adapted.check_lazy_status = check_lazy_status
    Adapted.__name__ = Adapted.__qualname__ = spec.id
    return Adapted


def _line(text: str) -> str:
    """What of a text fits on a node."""
    first = text.strip().split("\n", 1)[0]
    return first if len(first) <= _LONGEST_LINE else f"{first[: _LONGEST_LINE - 1]}…"


def _place(cls: type[io.ComfyNode]) -> str:
    """Where the node that ComfyUI asks about or runs stands in the prompt that is running."""
    return place_of(cls.hidden.unique_id, get_progress_state().dynprompt.get_node)


def _constants(spec: NodeSpec, given: dict[str, Any]) -> dict[str, Any]:
    """What is known of the inputs before anything runs: the values written into the prompt, without links."""
    return {name: value for name, value in _unlisted(spec, given).items() if value is not None}


def _unlisted(spec: NodeSpec, given: dict[str, Any]) -> dict[str, Any]:
    """ComfyUI hands a node that takes a list somewhere every input as a list: all but those are single again."""
    if not any(entry.many for entry in spec.inputs):
        return given
    lists = {entry.name for entry in spec.inputs if entry.many}
    waiting = (None,)  # how ComfyUI fills a linked input while it only checks the prompt
    return {
        name: None if value == waiting else value if name in lists or not isinstance(value, list) else value[0]
        for name, value in given.items()
    }


def _schema(spec: NodeSpec) -> io.Schema:
    host = ComfyHost()
    return _supported(
        io.Schema,
        node_id=spec.id,
        display_name=spec.display_name,
        category=spec.category,
        description=spec.description,
        inputs=[_input(entry, host) for entry in spec.inputs],
        outputs=[
            _type(output.kind).Output(f"out_{output.name}", display_name=output.name, tooltip=output.tooltip, is_output_list=output.many)
            for output in spec.outputs
        ],
        is_input_list=any(entry.many for entry in spec.inputs),
        hidden=[io.Hidden.unique_id, io.Hidden.prompt, io.Hidden.extra_pnginfo],
        is_output_node=spec.is_output,
        search_aliases=["musubi", "lora training"],
    )


def _input(entry: Input, host: ComfyHost) -> Any:
    values: dict[str, Any] = {
        "display_name": entry.title or None,
        "tooltip": entry.tooltip,
        "optional": entry.optional,
        "lazy": entry.late or None,
    }
    if entry.is_widget:
        values |= {"default": entry.default, "advanced": entry.advanced or None}
    if entry.kind in ("INT", "FLOAT"):
        values |= {"min": entry.lowest, "max": entry.maximum, "step": entry.step}
    if entry.kind == "STRING":
        values |= {"multiline": entry.multiline}
    if entry.kind == "COMBO":
        values |= {"options": choices_of(entry, host)}
    if entry.upload:
        values |= {"upload": io.UploadType[entry.upload]}
    return _supported(_type(entry.kind).Input, entry.name, **values)


_KINDS = {
    "INT": io.Int,
    "FLOAT": io.Float,
    "BOOLEAN": io.Boolean,
    "STRING": io.String,
    "COMBO": io.Combo,
    "VIDEO": io.Video,
    "IMAGE": io.Image,
    ANY: io.AnyType,
}


@cache
def _type(kind: str) -> Any:
    return _KINDS.get(kind) or io.Custom(kind)


def _supported(maker: Any, *positional: Any, **values: Any) -> Any:
    """Call `maker` with those arguments that this version of ComfyUI knows."""
    known = _arguments(maker)
    return maker(*positional, **{name: value for name, value in values.items() if name in known and value is not None})


@cache
def _arguments(maker: Any) -> frozenset[str]:
    """Kept, as ComfyUI asks for all nodes each time its page is opened, and half of that time was this."""
    return frozenset(inspect.signature(maker).parameters)


def _shown(host: ComfyHost, result: Result, report: dict[str, str]) -> dict[str, Any] | None:
    """Files in the output or temp folder, and what does not fit into a node's line, as the web page wants them."""
    images = []
    for path in result.shown:
        for kind, root in (("output", host.output_dir), ("temp", host.temp_dir)):
            if path.is_relative_to(root):
                subfolder = path.parent.relative_to(root)
                images.append({"filename": path.name, "subfolder": "" if subfolder == Path() else subfolder.as_posix(), "type": kind})
                break
    data = dict(result.page_data)
    if report:
        data["musubi_report"] = [report]
    if not images:
        return data or None
    animated = any(path.suffix.lower() in (".mp4", ".webm", ".gif") for path in result.shown)
    return {"images": images, "animated": (animated,), **data}


def _preview_image(path: Path) -> tuple[str, Any, int] | None:
    """The first image of a sample. A sample that cannot be read must not end a training."""
    import av

    try:
        with av.open(str(path)) as container:
            frame = next(container.decode(video=0))
            return ("JPEG", frame.to_image(), _PREVIEW_SIDE)
    except (av.FFmpegError, StopIteration, OSError):
        return None
