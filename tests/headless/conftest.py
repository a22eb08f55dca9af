"""A home folder with demo models and clips, ready to run workflows."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from musubi_backend.demo.clips import write_clips
from musubi_backend.demo.models import write_models

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Demo models and clips, made once."""
    folder = tmp_path_factory.mktemp("demo")
    write_models(folder / "models")
    write_clips(folder / "dataset")
    write_clips(folder / "quickstart", count=1, subject="chessboard")
    return folder


def _without_generating(workflow: dict[str, Any]) -> dict[str, Any]:
    """The nodes that lead to the trainer, alone."""
    nodes = {node["id"]: node for node in workflow["nodes"]}
    sources = {link[0]: link[1] for link in workflow["links"]}
    kept: set[int] = set()
    todo = [node["id"] for node in nodes.values() if node["type"].endswith("LoRATrainer")]
    while todo:
        number = todo.pop()
        kept.add(number)
        todo += [sources[entry["link"]] for entry in nodes[number].get("inputs", []) if entry.get("link") in sources]
    links = [link for link in workflow["links"] if link[1] in kept and link[3] in kept]
    for number in kept:
        for output in nodes[number].get("outputs", []):
            output["links"] = [link[0] for link in links if link[1] == number and link[0] in (output.get("links") or [])]
    return {**workflow, "nodes": [nodes[number] for number in sorted(kept)], "links": links, "groups": []}


@pytest.fixture(scope="session")
def training_only(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The quickstart up to its trainer: a workflow without the videos that are made before and after."""
    workflow = json.loads((ROOT / "workflows" / "quickstart.json").read_text(encoding="utf-8"))
    path = tmp_path_factory.mktemp("workflows") / "training.json"
    path.write_text(json.dumps(_without_generating(workflow)), encoding="utf-8")
    return path


@pytest.fixture
def home(tmp_path: Path, demo: Path, backend_python: str) -> Path:
    """A home folder with a space and Japanese in its name, ready to run the quickstart."""
    home = tmp_path / "our ホーム"
    home.mkdir()
    (home / "config.json").write_text(
        json.dumps({"interpreter": backend_python, "engine": "builtin", "allowed_roots": []}), encoding="utf-8"
    )
    shutil.copytree(demo, home / "demo")
    return home
