"""What killed programs leave next to results is removed a day later, and nothing else is."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest
from musubi_backend import atomic, content

OLD = time.time() - 2 * 24 * 3600


def put(path: Path, *, old: bool = True) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"half")
    if old:
        os.utime(path, (OLD, OLD))
    return path


def test_only_our_own_old_temporary_files_go(tmp_path: Path) -> None:
    own = atomic.part_of(tmp_path / "cat.loss.png")
    gone = [put(own), put(atomic.part_of(tmp_path / ("x" * 250))), put(tmp_path / f"{own.name}____")]
    kept = [
        put(atomic.part_of(tmp_path / "cat.safetensors"), old=False),  # of a program that runs
        *(put(tmp_path / name) for name in ("film.mp4.part", ".notes.part", ".a.0123456Z.part", "cat.safetensors", ".cat.lock")),
        put(tmp_path / "deeper" / own.name),
        put(tmp_path / "elsewhere" / "target"),
    ]
    link = tmp_path / atomic.part_of(Path("link")).name
    link.symlink_to(tmp_path / "elsewhere" / "target")
    os.utime(link, (OLD, OLD), follow_symlinks=False)
    atomic.sweep(tmp_path)
    assert not [path for path in gone if path.exists()]
    assert all(path.exists() for path in [*kept, link])
    atomic.sweep(tmp_path / "not there")


def test_hidden_folders_of_killed_tools_go_and_finished_files_in_them_stay(tmp_path: Path) -> None:
    empty, finished, running = (tmp_path / f"{atomic.OWN_FOLDER}{name}" for name in ("a", "b", "c"))
    half = put(atomic.part_of(empty / "lora.safetensors"))
    lora = put(finished / "lora.safetensors")
    running.mkdir()
    for folder in (empty, finished):
        os.utime(folder, (OLD, OLD))
    atomic.sweep(tmp_path)
    assert not half.exists() and not empty.exists()
    assert lora.exists() and running.is_dir()


def test_placing_a_result_sweeps_its_folder(part: Any, tmp_path: Path) -> None:
    left = put(atomic.part_of(tmp_path / "models" / "x.safetensors"))
    publishing = part("nodes.publishing")
    with publishing.made_beside(tmp_path / "models" / "lora.safetensors") as path:
        assert path.parent.name.startswith(atomic.OWN_FOLDER)
        assert not left.exists()
    left = put(left)
    made = put(tmp_path / "made.safetensors")
    publishing.place(made, tmp_path / "models" / "lora.safetensors")
    assert not left.exists()


@pytest.mark.parametrize("share", [0.2, 0.4, 0.55, 0.7, 0.9])
def test_a_change_of_some_layers_of_a_large_file_is_noticed(share: float, tmp_path: Path) -> None:
    """As between versions of one model: size and ends are equal, and a twentieth in between differs."""
    path = tmp_path / "model.safetensors"
    size = 5 * 2**20
    path.write_bytes(bytes(size))
    before = content.look([path])
    with path.open("rb+") as file:
        file.seek(int(size * share))
        file.write(b"\1" * (size // 20))
    assert content.look([path]).digest != before.digest
