"""The terminal as a host for nodes: folders under home instead of ComfyUI's, progress as lines of text."""

from __future__ import annotations

import asyncio
import contextlib
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, TextIO

from ..backend.musubi_backend.dataset.media import IMAGE_EXTENSIONS, VIDEO_EXTENSIONS
from ..backend.musubi_backend.errors import UserError
from ..nodes.jobs import config as configuration
from ..nodes.jobs import durations
from ..nodes.jobs.config import DEMO_MODELS
from ..nodes.jobs.environment import visible_gpus
from ..nodes.spec import NotYet
from ..nodes.split_models import with_indexes

_MODEL_SUFFIXES = {".safetensors", ".sft", ".pth", ".pt"}
IMAGE_SUFFIXES = tuple(ending for ending in IMAGE_EXTENSIONS if ending not in VIDEO_EXTENSIONS)
_OLD_NAMES = {"diffusion_models": "unet", "text_encoders": "clip"}
_BAR_WIDTH = 24
_NUMBER = re.compile(r"\d[\d.:/]*")


class Screen:
    """One updating line per running node on a terminal; plain lines elsewhere."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.live = stream.isatty()
        self._open = ""
        self._last: dict[str, tuple[str, float]] = {}

    def show(self, title: str, value: float, total: float, text: str) -> None:
        if self.live:
            filled = int(_BAR_WIDTH * min(1.0, value / total)) if total else 0
            if self._open and self._open != title:
                self.stream.write("\n")
            self.stream.write(f"\r\033[K{title}  [{'#' * filled}{'.' * (_BAR_WIDTH - filled)}] {text[:110]}")
            self.stream.flush()
            self._open = title
            return
        words = [_NUMBER.sub("", part) for part in text.split(" · ") if not part[:1].isdigit()]
        phase, last = " · ".join(words), self._last.get(title, ("", 0.0))
        if phase != last[0] or time.monotonic() - last[1] > durations.QUIET_LINES or value == total != 1:
            self._last[title] = (phase, time.monotonic())
            self.line(f"{title}  {text}")

    def line(self, text: str) -> None:
        if self._open:
            self.stream.write("\n")
            self._open = ""
        self.stream.write(text + "\n")
        self.stream.flush()


class CtrlC:
    """Ctrl-C as a request: counted, and passed on the first time."""

    def __init__(self) -> None:
        self.presses = 0

    @contextlib.contextmanager
    def calling(self, cancel: Callable[[], object]) -> Iterator[None]:
        """For the block, in an event loop of the main thread: the first Ctrl-C calls `cancel` there."""
        loop = asyncio.get_running_loop()

        def pressed(number: int, frame: object) -> None:
            self.presses += 1
            if self.presses == 1:
                loop.call_soon_threadsafe(cancel)

        former = signal.signal(signal.SIGINT, pressed)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, former)


class TerminalHost:
    """Host for one node. Model folders: those given, then `<home>/models`, laid out like ComfyUI's, then the demo models.

    A models folder without sub-folders for a kind of model offers its own files for it.
    """

    def __init__(
        self, home: Path, models: Sequence[Path] = (), screen: Screen | None = None, title: str = "", ctrl_c: CtrlC | None = None
    ) -> None:
        self.home = home
        self.input_dir = home / "input"
        self.output_dir = home / "output"
        self.temp_dir = home / "temp"
        self.keeps_metadata = True
        self.warnings: list[str] = []
        self.screen = screen or Screen(sys.stderr)
        self.title = title
        self.ctrl_c = ctrl_c or CtrlC()
        self._given = tuple(path.absolute() for path in models)
        self._models = [*self._given, home / "models", home / DEMO_MODELS]

    def named(self, title: str) -> TerminalHost:
        """The same host for another node."""
        return TerminalHost(self.home, self._given, self.screen, title, self.ctrl_c)

    def allowed_roots(self) -> list[Path]:
        return [self.input_dir, self.output_dir, self.temp_dir, *self._models, self.home, *configuration.load(self.home).allowed_roots]

    def model_names(self, key: str) -> list[str]:
        names = set()
        for folder in self._folders(key):
            for path in folder.rglob("*") if folder.is_dir() else ():
                if path.suffix.lower() in _MODEL_SUFFIXES and path.is_file():
                    names.add(path.relative_to(folder).as_posix())
        return with_indexes(sorted(names), lambda name: any((folder / name).is_file() for folder in self._folders(key)))

    def model_path(self, key: str, name: str) -> Path:
        parts = name.replace("\\", "/").split("/")
        for folder in self._folders(key):
            path = folder.joinpath(*parts)
            if ".." not in parts and parts[0] and path.is_file():
                return path
        raise UserError(f"{name} is not in {' or '.join(str(folder) for folder in self._folders(key))}")

    def loras_dir(self) -> Path:
        return self.home / "models" / "loras"

    def progress(self, value: float, total: float, text: str, preview: Path | None = None) -> None:
        self.screen.show(self.title, value, total, text)
        if preview is not None:
            self.screen.line(f"{self.title}  sample: {preview}")

    def show_job(self, job: str) -> None:
        """A terminal has its line of progress."""

    def begins(self, job: str) -> None:
        """As `show_job`."""

    def check_interrupted(self) -> None:
        """The first Ctrl-C cancels the running tasks; the second is found out here, where a job is waited for."""
        if self.ctrl_c.presses > 1:
            raise KeyboardInterrupt

    def free_gpu_memory(self) -> str:
        return ""

    def video(self, path: Path) -> Any:
        return str(path)

    def frames(self, path: Path) -> Any:
        return str(path)

    def lora_model(self, path: Path) -> Any:
        return str(path)

    def video_file(self, video: Any) -> Path:
        return Path(video)

    def image_files(self, images: Any, folder: Path, name: str) -> list[Path]:
        """`images` is an image, a video, or a folder of PNG files, by its path."""
        source = Path(images)
        if source.suffix.lower() in IMAGE_SUFFIXES:
            return [source]
        from ..backend.musubi_backend.inference.video_file import read_images, write_pngs

        return write_pngs(folder, name, read_images(source)[0])

    def images(self, arrays: Sequence[Any], folder: Path) -> Any:
        from ..backend.musubi_backend.inference.video_file import write_pngs

        files = write_pngs(folder, "frames", arrays)
        return str(files[0] if len(files) == 1 else files[0].parent)

    def clip(self, arrays: Sequence[Any], fps: Fraction, path: Path) -> Any:
        from ..backend.musubi_backend.inference.video_file import write_mp4

        return str(write_mp4(path, arrays, fps))

    def input_files(self, suffixes: tuple[str, ...]) -> list[str]:
        if not self.input_dir.is_dir():
            return []
        return sorted(path.name for path in self.input_dir.iterdir() if path.suffix.lower() in suffixes and path.is_file())

    def gpus(self) -> list[str]:
        import torch

        return visible_gpus(torch.cuda.device_count())

    def workflow(self) -> dict[str, Any] | None:
        return None

    def not_yet(self, why: str) -> NotYet:
        return NotYet(why)

    def _folders(self, key: str) -> list[Path]:
        names = [key, *([_OLD_NAMES[key]] if key in _OLD_NAMES else [])]
        folders = []
        for root in self._models:
            own = [root / name for name in names if (root / name).is_dir()]
            folders += own or ([root] if key in _OLD_NAMES or key in ("vae", "clip_vision") else [])
        return folders
