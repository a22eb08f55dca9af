"""In a real ComfyUI: each result is used again by itself, and what lies behind a link is looked at again. Needs COMFYUI_PATH."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from .test_comfyui import Server, started

pytestmark = [pytest.mark.comfyui, pytest.mark.slow, pytest.mark.timeout(600)]
NODES = ("link", "read", "write")


@pytest.fixture(scope="module")
def server(comfyui_path: Path, comfyui_python: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with started(comfyui_path, comfyui_python, tmp_path_factory.mktemp("comfy base"), "pack") as made:
        yield made


def workflow(name: str) -> dict[str, Any]:
    """A video read from a linked path and written under a name; the ids of the nodes are the same in every one."""
    return {
        "link": {"class_type": "PrimitiveString", "inputs": {"value": "clip.mp4"}},
        "read": {
            "class_type": "MusubiTuner_VideoInput",
            "inputs": {"path": ["link", 0], "start": 0, "count": 5, "stride": 1, "fps": 0.0, "file": "none"},
        },
        "write": {
            "class_type": "MusubiTuner_VideoOutput",
            "inputs": {"video": ["read", 1], "filename_prefix": name, "format": "mp4", "fps": 0},
        },
    }


def test_each_result_is_used_again_by_itself_and_links_are_followed(server: Server) -> None:
    base = server.home.parent
    clip, (first, other, *_) = base / "input" / "clip.mp4", sorted((server.home / "demo" / "dataset").glob("*.mp4"))
    clip.parent.mkdir(exist_ok=True)
    shutil.copyfile(first, clip)

    def run_again(name: str) -> set[str]:
        """The nodes that run."""
        outcome = asyncio.run(server.queue(workflow(name)))
        assert outcome.kind == "success", outcome.error
        return set(NODES) - set(outcome.cached)

    assert run_again("one") == set(NODES)
    assert run_again("other") == {"write"}
    assert run_again("one") == run_again("other") == set()
    (base / "output" / "one_00001.mp4").unlink()
    assert run_again("other") == set()
    assert run_again("one") == {"write"}
    assert run_again("one") == set()

    shutil.copyfile(other, clip)
    assert run_again("one") == {"read", "write"}
    assert run_again("one") == set()
