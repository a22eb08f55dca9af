"""Images and videos that a generation starts from or is steered by: from the graph, or from a path.

What comes from the graph is written as files into the job folder, because the backend is another process.
"""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ..backend.musubi_backend.architectures.widgets import Source
from ..backend.musubi_backend.atomic import replacing
from ..backend.musubi_backend.errors import UserError
from .jobs import guard
from .spec import Host, Input, Problem, refused

_SECTION = re.compile(r"\s*(-?\d+(?:-\d+)?)\s*:(.*)", re.DOTALL)
SECTIONS = ";;;"


def sockets_and_paths(sources: Sequence[Source]) -> tuple[Input, ...]:
    """The inputs of a node for `sources`: widgets first and then sockets, since neither may move later."""
    return (*map(_path_input, sources), *(Input(one.socket, one.kind, one.what, optional=True, tasks=one.tasks) for one in sources))


def _path_input(source: Source) -> Input:
    place = "Relative paths start in ComfyUI's input folder, or else in this pack's home folder."
    each = " One per line." if source.several else ""
    return Input(
        source.path,
        "STRING",
        f"{source.what} From a path instead of {source.socket}.{each} {place}",
        default="",
        multiline=source.several,
        advanced=True,
        tasks=source.tasks,
    )


def problems(host: Host, sources: Iterable[Source], constants: dict[str, Any]) -> Iterator[Problem]:
    """The path widgets that name nothing, or something outside the allowed folders."""
    for source in sources:
        if constants.get(source.path):
            yield from refused(source.path, _paths, host, source, constants[source.path])


def given(sources: Iterable[Source], inputs: dict[str, Any]) -> set[str]:
    """The options that have something to start from."""
    return {source.option for source in sources if inputs.get(source.socket) is not None or str(inputs.get(source.path) or "").strip()}


def values(host: Host, sources: Iterable[Source], inputs: dict[str, Any], folder: Path) -> dict[str, Any]:
    """option name -> path, or paths, of everything given; images from the graph are written into `folder`."""
    chosen: dict[str, Any] = {}
    for source in sources:
        value, text = inputs.get(source.socket), str(inputs.get(source.path) or "").strip()
        if value is not None and text:
            raise UserError(f"{source.socket} is connected and {source.path} is filled in: use one of them")
        if value is not None:
            files = [host.video_file(value)] if source.kind == "VIDEO" else host.image_files(value, folder, source.socket)
            chosen[source.option] = [str(file) for file in files] if source.several else str(files[0])
        elif text:
            paths = _paths(host, source, text)
            chosen[source.option] = paths if source.several else paths[0]
    return chosen


def kept(host: Host, sources: Iterable[Source], inputs: dict[str, Any]) -> dict[str, Any]:
    """As `values`, but under names that follow from the contents, in a folder that stays: the same image has the same path again."""
    made = values(host, sources, inputs, host.home / "pictures" / "incoming")
    return {
        option: [_by_content(host, path) for path in value] if isinstance(value, list) else _by_content(host, value)
        for option, value in made.items()
    }


def _by_content(host: Host, path: str) -> str:
    """The path of a file that lies in the incoming folder, or in the host's temporary one, after it got its lasting name."""
    source, folder = Path(path), host.home / "pictures"
    if not guard.is_inside(source, [folder / "incoming", host.temp_dir]):
        return path
    target = folder / f"{hashlib.sha256(source.read_bytes()).hexdigest()[:24]}{source.suffix}"
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(target) as part:
        shutil.copyfile(source, part)
    return str(target)


def names_sections(value: str) -> bool:
    """True for a path, or several, that say for which section they are."""
    return any(_SECTION.fullmatch(part) for part in value.split(SECTIONS))


def stamps(host: Host, sources: Iterable[Source], constants: dict[str, Any]) -> list[Path]:
    """The files behind the path widgets, to see when one changes."""
    return [
        Path(_file(host, source, path))
        for source in sources
        for _, path in _parts(source, str(constants.get(source.path) or ""))
        if path.strip()
    ]


def _paths(host: Host, source: Source, text: str) -> list[str]:
    """The checked paths of a widget as the flag takes them."""
    labelled = [f"{label}{_file(host, source, path)}" for label, path in _parts(source, text)]
    return [SECTIONS.join(labelled)] if source.sections else labelled


def _parts(source: Source, text: str) -> list[tuple[str, str]]:
    """(label of its section such as "-1:", or ""; path) of every path in a widget."""
    if not source.sections:
        return [("", line) for line in (text.splitlines() if source.several else [text]) if line.strip()]
    matches = [(_SECTION.fullmatch(part), part) for part in text.split(SECTIONS)]
    return [(f"{match[1]}:", match[2]) if match else ("", part) for match, part in matches]


def _file(host: Host, source: Source, text: str) -> str:
    return str(guard.inside(text, host.allowed_roots(), source.path, relative_to=(host.input_dir, host.home)))
