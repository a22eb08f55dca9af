"""Finished files get the name that was asked for, where ComfyUI offers them, and never replace a file that is there."""

from __future__ import annotations

import contextlib
import filecmp
import hashlib
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from ..backend.musubi_backend.architectures.card import Card
from ..backend.musubi_backend.atomic import OWN_FOLDER, part_of, replacing, sweep
from ..backend.musubi_backend.errors import UserError
from ..backend.musubi_backend.options.argv import to_argv
from ..backend.musubi_backend.options.option import LORA_CONVERT
from ..backend.musubi_backend.place import reason, try_folder
from .jobs import durations

LORA_SUBFOLDER = "musubi_tuner"
_TRIES = 5  # while another program has the file open
_one_at_a_time = threading.Lock()  # nodes of a graph run next to each other, and two may want one name

Put = Callable[[Path, Path], object]


class NotPlaced(UserError):
    """A finished file stays where it was made; the message says where."""


@contextlib.contextmanager
def made_beside(wanted: Path) -> Iterator[Path]:
    """Where to make the file that will be called `wanted`: of the same name, in a hidden folder on the same disk. What is not taken from
    there is removed, unless it is a finished file that could not be placed."""
    wanted.parent.mkdir(parents=True, exist_ok=True)
    sweep(wanted.parent)
    folder = Path(tempfile.mkdtemp(prefix=OWN_FOLDER, dir=wanted.parent))
    try:
        yield folder / wanted.name
    except NotPlaced:
        raise
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    shutil.rmtree(folder, ignore_errors=True)


def linked(made: Path, target: Path) -> None:
    """Give a file a second name, without taking space twice where the disk allows it."""
    try:
        os.link(made, target)
    except OSError:  # another disk, or one without links
        shutil.copyfile(made, target)


def place(made: Path, wanted: Path, put: Put = linked) -> tuple[Path, str]:
    """Put a finished file where `wanted` says. A file of that name with other contents is another one and stays, and so does one that
    cannot be read or written; then the name gets a hash of the contents.

    put: copies the first path to the second; a link, where nobody will write to it again. Returns the path, and what to say of the name.
    """
    target = wanted
    try:
        wanted.parent.mkdir(parents=True, exist_ok=True)
        sweep(wanted.parent)
        with _one_at_a_time:
            if _placed(made, wanted, put):
                return wanted, ""
            target = wanted.with_name(f"{wanted.stem}-{_hash(made)}{wanted.suffix}")
            if not _placed(made, target, put):
                raise NotPlaced(f"{target} could not be written; the finished file is {made}")
    except OSError as error:
        raise NotPlaced(f"{target} could not be written: {reason(error)}; the finished file is {made}") from error
    return target, f"{wanted.name} is another file, or in use, and was left as it is; this one is {target.name}"


def publish(lora: Path, loras: Path, name: str) -> tuple[str, Path, str]:
    """As `place`, a copy of a LoRA to where ComfyUI offers it. Returns its name in the list of LoRAs, the path, and what to say."""
    path, said = place(lora, wanted_place(loras, name), shutil.copyfile)
    return listed(path), path, said


def wanted_place(loras: Path, name: str) -> Path:
    """Where a LoRA of that name is published, unless another file is there."""
    return loras / LORA_SUBFOLDER / f"{name}.safetensors"


def conversion(card: Card, lora: Path) -> tuple[Path, list[str]] | None:
    """Where a finished LoRA lies in the form that ComfyUI's own loader takes, and the arguments that make it so, empty where that is done;
    None where its own form is that."""
    if card.comfy_lora is None:
        return None
    converted = lora.parent / "comfyui" / lora.name
    if converted.is_file() and converted.stat().st_mtime_ns >= lora.stat().st_mtime_ns:
        return converted, []
    converted.parent.mkdir(exist_ok=True)
    values = {"input": str(lora), "output": str(converted), "target": "other", "architecture": card.comfy_lora}
    return converted, to_argv(LORA_CONVERT, values)


def try_to_publish(loras: Path, names: Sequence[str], what: str) -> None:
    """See that LoRAs of these names can be published there later, before anything is trained. UserError says what is wrong with `what`."""
    longest = [f"{name}-{0:08x}.safetensors" for name in names]
    try_folder(loras / LORA_SUBFOLDER, [*longest, *(part_of(Path(name)).name for name in longest)], what)


def listed(lora: Path) -> str:
    """The name of a published LoRA, as ComfyUI lists it."""
    return os.path.join(LORA_SUBFOLDER, lora.name)  # noqa: PTH118


def _placed(made: Path, target: Path, put: Put) -> bool:
    """True once `target` is what was made; False where it is something else, or cannot be written for a while."""
    for attempt in range(_TRIES):
        with contextlib.suppress(PermissionError, FileExistsError):  # the latter where another program publishes that name just now
            if target.exists():
                return target.is_file() and filecmp.cmp(made, target, shallow=False)
            with replacing(target, anew=True) as part:
                put(made, part)
            return True
        time.sleep(durations.FILE_IN_USE * (attempt + 1))
    return False


def _hash(path: Path) -> str:
    value = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 22):
            value.update(piece)
    return value.hexdigest()[:8]
