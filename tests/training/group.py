"""Processes that train together, for tests: they play scenes one after the other (`group_rank`), since starting them takes the time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from musubi_backend.weights.safetensors_file import load

RANK = Path(__file__).with_name("group_rank.py")
BACKEND = Path(__file__).resolve().parents[2] / "backend"


def scene(project: Any, name: str, *flags: str, story: str = "", count: int = 0, others: Any = None, **values: Any) -> dict[str, Any]:
    """A training that ends in `out/NAME`. story: what happens in it; count: of the processes that play it, 0 for all; others: values that
    all but the first have otherwise."""
    words = [project.argv(name, *flags, **{**values, **more}) for more in ({}, others or {})]
    return {"name": name, "story": story, "words": words, "count": count}


class Group:
    """What happened in the scenes. project: where they did; texts: scene -> what each process printed; items: scene -> process -> step ->
    names of the items it learned from."""

    def __init__(self, project: Any, folder: Path, count: int) -> None:
        self.project, self.folder = project, folder
        files = [folder / f"happened{rank}.json" for rank in range(count)]
        every = [json.loads(path.read_text(encoding="utf-8")) if path.exists() else {} for path in files]
        self.results, self.texts, self.items = (
            {name: [one[name][place] for one in every if name in one] for name in {**every[-1], **every[0]}} for place in range(3)
        )

    def lora(self, name: str) -> dict[str, torch.Tensor]:
        """Of a training that ended well in all processes."""
        assert set(self.results[name]) == {0}, "\n".join(self.texts[name])
        whole: dict[str, torch.Tensor] = self.project.lora(name)
        return whole

    def state(self, name: str, step: int) -> Path:
        return Path(self.folder / "out" / name / f"cat-step{step:08d}-state")

    def learned(self, name: str) -> list[list[str]]:
        """Items of each step, of all processes in their order."""
        return [[item for row in zip(*micro_steps, strict=True) for item in row] for micro_steps in zip(*self.items[name], strict=True)]


def played(project: Any, folder: Path, scenes: Sequence[dict[str, Any]], count: int = 2, killed: int | None = None) -> Group:
    """The scenes, played by so many processes. killed: the one that does not survive the last, or hangs in it."""
    plan = folder / "scenes.json"
    plan.write_text(json.dumps(scenes, default=str), encoding="utf-8")
    group = {"MASTER_ADDR": "127.0.0.1", "PYTHONPATH": str(BACKEND), "OMP_NUM_THREADS": "1"}
    printed = [folder / f"printed{rank}.txt" for rank in range(count)]
    processes = [
        subprocess.Popen(
            [sys.executable, str(RANK), str(plan), str(folder)], stdin=subprocess.DEVNULL, stdout=said.open("wb"), stderr=subprocess.STDOUT,
            env={**os.environ, **group, "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count)},
        )
        for rank, said in enumerate(printed)
    ]  # fmt: skip
    try:
        while None in (ended := [process.poll() for rank, process in enumerate(processes) if rank != killed]) and not any(ended):
            time.sleep(0.1)  # where one fails, the other would wait for it
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert killed is not None or not any(ended), "\n".join(said.read_text(encoding="utf-8") for said in printed)
    return Group(project, folder, count)


def gradients_of(folder: Path, name: str, rank: int) -> dict[str, torch.Tensor]:
    return load(folder / name / f"gradients{rank}.safetensors")
