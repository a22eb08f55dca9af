"""What a node is, independent of ComfyUI: its specification, its run, and the host it runs on. (`checks` judges the values it is given.)"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, ClassVar, Protocol

from ..backend.musubi_backend.errors import UserError

WIDGETS = ("INT", "FLOAT", "BOOLEAN", "STRING", "COMBO")
ANY = "*"


class Stopped(UserError):
    """A job that somebody stopped elsewhere than on its node: on the page of trainings, or from a terminal. No mistake of anybody.

    line: what became of it, for its node.
    """

    def __init__(self, text: str, line: str) -> None:
        super().__init__(text)
        self.line = line


class Host(Protocol):
    """What runs a node: ComfyUI, or the terminal."""

    home: Path
    input_dir: Path
    output_dir: Path
    temp_dir: Path
    keeps_metadata: bool
    """Whether videos and images may say what they were made with."""
    warnings: list[str]
    """What the running node shows with its result, below its text."""

    def allowed_roots(self) -> list[Path]:
        """Folders that paths from widgets may lie in."""
        ...

    def model_names(self, key: str) -> list[str]:
        """Names in a model folder ("diffusion_models", "vae", ...), relative to its roots."""
        ...

    def model_path(self, key: str, name: str) -> Path:
        """The file of a name. UserError if there is none."""
        ...

    def loras_dir(self) -> Path:
        """Where new LoRAs go."""
        ...

    def progress(self, value: float, total: float, text: str, preview: Path | None = None) -> None:
        """Show how far the running node is; `preview` is an image or video to show."""
        ...

    def show_job(self, job: str) -> None:
        """Show a training on the running node by the id of its job: its curve, and its samples instead of previews."""
        ...

    def begins(self, job: str) -> None:
        """Say which job the running node has begun, for whoever sees it from outside only: the node may be folded into another one."""
        ...

    def check_interrupted(self) -> None:
        """Raise the host's own exception if the user asked to stop."""
        ...

    def free_gpu_memory(self) -> str:
        """Unload the host's models; returns a line saying how much GPU memory is free, or ""."""
        ...

    def video(self, path: Path) -> Any:
        """The host's video object for a file."""
        ...

    def frames(self, path: Path) -> Any:
        """The host's image batch for the frames of a video or image."""
        ...

    def lora_model(self, path: Path) -> Any:
        """The host's object for a LoRA's weights."""
        ...

    def video_file(self, video: Any) -> Path:
        """A file that holds a video object."""
        ...

    def image_files(self, images: Any, folder: Path, name: str) -> list[Path]:
        """A PNG file per image of a batch, called `<name>_000.png` and on, in `folder`, which is made if missing."""
        ...

    def images(self, arrays: Sequence[Any], folder: Path) -> Any:
        """The host's image batch of uint8 arrays [H, W, 3]; a host that needs files puts them into `folder`."""
        ...

    def clip(self, arrays: Sequence[Any], fps: Fraction, path: Path) -> Any:
        """The host's video object of uint8 arrays [H, W, 3]; a host that needs a file writes it to `path`."""
        ...

    def input_files(self, suffixes: tuple[str, ...]) -> list[str]:
        """Files with these endings directly in the input folder, by name."""
        ...

    def gpus(self) -> list[str]:
        """The GPUs that jobs may use, as CUDA_VISIBLE_DEVICES names them; empty without any."""
        ...

    def workflow(self) -> dict[str, Any] | None:
        """The workflow that runs, and its prompt, as images made by it would hold them; None where they may not or there is none."""
        ...

    def not_yet(self, why: str) -> Any:
        """An output that is not there yet: nodes that need it do not run."""
        ...


@dataclass(frozen=True)
class Input:
    """One input: a widget (kind in WIDGETS) or a socket of a named type.

    choices   for COMBO: the values, or a function of the host that lists them
    off       the widget value that means "do not set this": nothing is passed to the backend
    option    name of the backend option it sets, where it sets one
    upload    for COMBO over the input folder: "video" offers a button to add one
    many      for sockets: takes all items of a list at once
    tasks     the tasks of the models that have a use for it, for the page to hide it with others; empty: all
    takers    of a node for all families: the `Card.node_name` of those that have a use for it, and their tasks, likewise; empty: all
    late      for sockets: costly, and made only after `Node.precheck` has accepted the other inputs
    """

    name: str
    kind: str
    tooltip: str
    default: Any = None
    minimum: float | None = None
    maximum: float | None = None
    step: float | None = None
    choices: tuple[str, ...] | Callable[[Host], list[str]] | None = None
    off: Any = None
    option: str = ""
    optional: bool = False
    advanced: bool = False
    multiline: bool = False
    title: str = ""
    upload: str = ""
    many: bool = False
    tasks: tuple[str, ...] = ()
    late: bool = False
    takers: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def is_widget(self) -> bool:
        return self.kind in WIDGETS

    def is_for(self, family: str, task: str | None) -> bool:
        """Whether a family (`Card.node_name`) has a use for it, for this task where it has several."""
        if self.takers and family not in self.takers:
            return False
        tasks = self.tasks or self.takers.get(family, ())
        return not tasks or task is None or task in tasks

    @property
    def lowest(self) -> float | None:
        """The least value the widget can show: `off` may lie below the values that mean something."""
        if self.minimum is None or self.off is None:
            return self.minimum
        least: float = min(self.minimum, self.off)
        return least


@dataclass(frozen=True)
class NotYet:
    """In place of an output that is not there yet, where the host has nothing of its own for it."""

    why: str


@dataclass(frozen=True)
class Output:
    """many: the value is a list, whose items go one by one into what is connected."""

    name: str
    kind: str
    tooltip: str = ""
    many: bool = False


@dataclass(frozen=True)
class NodeSpec:
    id: str
    display_name: str
    category: str
    description: str
    inputs: tuple[Input, ...]
    outputs: tuple[Output, ...] = ()
    is_output: bool = False

    def input(self, name: str) -> Input:
        for candidate in self.inputs:
            if candidate.name == name:
                return candidate
        raise KeyError(name)


@dataclass(frozen=True)
class Result:
    """What a run gives.

    values   one per output
    text     for people; what does not fit into a line is shown in a panel of the node
    line     the one line shown on the node; the first of `text` where there is none
    shown    files to show on the node (images, videos) that lie in the host's output or temp folder
    files    files that must still be as they are now for this result to be used again
    page_data  what the node's own part of the web page gets when it has run: lists of JSON values by name
    """

    values: tuple[Any, ...] = ()
    text: str = ""
    shown: tuple[Path, ...] = ()
    files: tuple[Path, ...] = ()
    page_data: Mapping[str, list[Any]] = field(default_factory=dict)
    line: str = ""


@dataclass(frozen=True)
class Problem:
    """One mistake: the input it is on, and a sentence that says what is wrong and what to do."""

    input: str
    text: str


def refused(name: str, check: Callable[..., object], *values: Any) -> Iterator[Problem]:
    """The problem of the input `name` if `check` of these values raises UserError."""
    try:
        check(*values)
    except UserError as error:
        yield Problem(name, str(error))


_MOST_WARNINGS = 20


def opening(text: str) -> str:
    """The first line of a text; of one that announces a list, with what the list begins with."""
    lines = [line.strip() for line in text.strip().split("\n")]
    end = next((index for index, line in enumerate(lines) if not line.endswith((":", "："))), len(lines))
    return " ".join(lines[: end + 1])


def with_warnings(text: str, warnings: Sequence[str]) -> str:
    """What a node shows at its end."""
    more = len(warnings) - _MOST_WARNINGS
    last = [f"and {more} more; the log has all"] if more > 0 else []
    return "\n".join([*filter(None, [text]), *(f"Note: {one}" for one in warnings[:_MOST_WARNINGS]), *last])


class Node(ABC):
    """Base of all nodes. They keep no state; everything a run needs is in its inputs and the host."""

    spec: ClassVar[NodeSpec]

    def validate(self, host: Host, **constants: Any) -> Iterable[Problem]:
        """Quick check of widget values (linked inputs, and values that are wrong by themselves, are absent): every mistake, each once."""
        return ()

    def precheck(self, host: Host, **inputs: Any) -> str | None:
        """What is wrong with the inputs that are not `Input.late`, or None: then those are made."""
        return None

    def fingerprint(self, host: Host, **constants: Any) -> str:
        """Changes when the node must run again though its inputs are the same: files that changed, for one."""
        return ""

    @abstractmethod
    async def run(self, host: Host, **inputs: Any) -> Result:
        """Do the node's work; inputs hold a value for every input of the spec."""


def finite(value: float, otherwise: float = 0.0) -> float:
    """Numbers for the user interface: NaN and infinity would break ComfyUI's history."""
    return value if math.isfinite(value) else otherwise
