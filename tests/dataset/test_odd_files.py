"""Pipes, devices, links that go in circles and captions of megabytes among a dataset's files: each is said, and none is waited for."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from musubi_backend import content
from musubi_backend.dataset.discovery import discover
from musubi_backend.dataset.jsonl import read_records
from musubi_backend.dataset.media import LONGEST_CAPTION
from musubi_backend.dataset.probe import foresee
from musubi_backend.dataset.problems import Problem
from musubi_backend.errors import UserError
from musubi_backend.texts import read_text
from musubi_backend.weights.loader import read_pickled
from musubi_backend.weights.safetensors_file import read_header

pytestmark = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has no pipes among files")


@pytest.fixture(autouse=True)
def no_waiting() -> Iterator[None]:
    """A reader that waits for a pipe fails instead of waiting."""

    def waited(*_: Any) -> None:
        raise AssertionError("a pipe was opened, and waited for")

    former = signal.signal(signal.SIGALRM, waited)
    signal.alarm(20)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, former)


@pytest.mark.parametrize(
    ("read", "raised"),
    [(read_text, OSError), (read_header, UserError), (read_pickled, UserError), (lambda path: content.look([path]), OSError),
     (lambda path: read_records(path, "image"), (OSError, ValueError))],
)  # fmt: skip
@pytest.mark.parametrize("kind", ["pipe", "device", "circle"])
def test_what_is_no_file_is_not_opened(read: Callable[[Path], object], raised: Any, kind: str, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero" if kind == "device" else path.name)
    with pytest.raises(raised):
        read(path)


def test_a_dataset_with_such_files_tells_of_each(make: SimpleNamespace, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    for name in ("pipe", "device", "muted", "long", "good"):
        make.image(folder / f"{name}.png")
        make.caption(folder / f"{name}.png")
    for path in (folder / "pipe.png", folder / "muted.txt"):
        path.unlink()
        os.mkfifo(path)
    (folder / "device.png").unlink()
    (folder / "device.png").symlink_to("/dev/zero")
    (folder / "round.png").symlink_to("round.png")
    make.caption(folder / "round.png")
    (folder / "long.txt").write_bytes(b"word " * (LONGEST_CAPTION // 5 + 1))
    config = make.config(tmp_path, f"image_directory = '{folder}'\ncache_directory = '{tmp_path / 'cache'}'")
    found = discover(config.datasets[0], make.card)
    said = {problem.path.stem: problem.reason for problem in found.problems}
    for item in found.items:
        outcome = foresee(item, make.card)
        if isinstance(outcome, Problem):
            said[item.path.stem] = outcome.reason
    assert set(said) == {"pipe", "device", "round", "muted", "long"}
    assert "pipe or a device" in said["pipe"] and "pipe or a device" in said["device"] and "pipe or a device" in said["muted"]
    assert "too long" in said["long"]


def test_what_a_shell_gives_for_a_command_is_read() -> None:
    reading, writing = os.pipe()
    os.write(writing, b"a prompt")
    os.close(writing)
    assert read_text(Path(f"/dev/fd/{reading}")) == "a prompt"
    os.close(reading)
