"""Turns our nodes into ComfyUI V3 classes, which run them on ComfyUI as a host (`comfy_host`).

Measured differences between ComfyUI 0.3.48 and newer that this file hides: schema arguments that an older core lacks are
dropped (it would raise TypeError).
"""

from __future__ import annotations

import inspect
from functools import cache
from pathlib import Path
from typing import Any

import comfy.model_management
from comfy_api.latest import ComfyExtension, io
from comfy_execution.progress import get_progress_state

from ..backend.musubi_backend.counted import counted
from ..backend.musubi_backend.errors import UserError
from ..backend.musubi_backend.place import in_words
from . import comfy_language
from .catalog import NODES
from .checks import check, choices_of, prechecked, prepared
from .comfy_errors import RunError, report, show_each_once
from .comfy_host import ComfyHost, running_server
from .monitor.watch import watch
from .reuse import Kept, KeptResults, place_of
from .routes import add_routes
from .spec import ANY, Input, Node, NodeSpec, Problem, Result, Stopped, opening, with_warnings
from .translations import translated

_LONGEST_LINE = 110  # characters: two lines of a node as wide as ComfyUI makes it


_RESULTS = KeptResults()


class MusubiTunerExtension(ComfyExtension):
    def __init__(self) -> None:
        """Answer our own web pages and show each mistake once. Here, as ComfyUI before 0.14 never calls `on_load`."""
        server = running_server()
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
            return io.NodeOutput(
                *result.values, ui=_shown(host, result, {"line": line, "text": "" if text == line else text} if line else {})
            )

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
    first = opening(text)
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
    """Files in the output or temp folder, a node's line, and what does not fit into it, as the web page wants them. ComfyUI tells lines
    as a node runs only, but gives these again for each kept result."""
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
