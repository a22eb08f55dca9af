"""A training's identity follows from what the caches hold and were made from, not from when or where they were written."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

NAMES = ("clip_00000-005_0064x0048_wan.safetensors", "clip_wan_te.safetensors")


@pytest.fixture
def stamps(part: Any) -> Any:
    card = part("backend.musubi_backend.architectures").cards()["wan"]
    return lambda folder: part("nodes.cache").cache_stamps({"datasets": [{"cache_directory": str(folder)}]}, card)


def cache(part: Any, folder: Path, *, clip: str = "1", vae: str = "2", latents: bytes = b"latents") -> None:
    sources = part("backend.musubi_backend.caching.sources")
    folder.mkdir(exist_ok=True)
    notes = sources.Sources(folder)
    notes.begin(["clip_wan", "clip_wan_te"])
    for name, data in zip(NAMES, (latents, b"text"), strict=True):
        (folder / name).write_bytes(data)
    notes.made("clip_wan", [folder / NAMES[0]], sources.Made((clip,), {"vae": vae}))
    notes.made("clip_wan_te", [folder / NAMES[1]], sources.Made((), {"t5": "3"}))
    notes.save()


def test_caching_the_same_again_copying_and_moving_change_nothing(part: Any, stamps: Any, tmp_path: Path) -> None:
    cache(part, tmp_path / "a")
    before = stamps(tmp_path / "a")
    assert len(before) == 2
    cache(part, tmp_path / "a")
    assert stamps(tmp_path / "a") == before
    shutil.copytree(tmp_path / "a", tmp_path / "b", copy_function=shutil.copyfile)
    for name in NAMES:
        os.utime(tmp_path / "b" / name, (1, 1))
    assert stamps(tmp_path / "b") == before


@pytest.mark.parametrize("change", [{"clip": "other"}, {"vae": "other"}, {"latents": b"others!"}])
def test_another_clip_vae_or_result_changes_them(part: Any, stamps: Any, tmp_path: Path, change: dict[str, Any]) -> None:
    cache(part, tmp_path / "a")
    before = stamps(tmp_path / "a")
    cache(part, tmp_path / "a", **change)
    assert stamps(tmp_path / "a") != before


def test_caches_of_other_programs_count_by_name_size_and_time(part: Any, stamps: Any, tmp_path: Path) -> None:
    cache(part, tmp_path / "a")
    (tmp_path / "a" / "cache_sources.json").unlink()
    before = stamps(tmp_path / "a")
    assert stamps(tmp_path / "a") == before
    os.utime(tmp_path / "a" / NAMES[0], (1, 1))
    assert stamps(tmp_path / "a") != before
    shutil.rmtree(tmp_path / "a")
    assert stamps(tmp_path / "a") == []
