"""In a real ComfyUI: it is killed during a training in the background, which goes on; the next one finds it and stops it. Needs
COMFYUI_PATH."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from .test_comfyui import Server, quickstart, running, started

__all__ = ["quickstart"]
pytestmark = [pytest.mark.comfyui, pytest.mark.slow, pytest.mark.timeout(900)]


def until(condition: Callable[[], Any]) -> Any:
    end = time.monotonic() + 300
    while not (found := condition()):
        assert time.monotonic() < end, "did not happen in time"
        time.sleep(0.2)
    return found


def keepers(base: Path) -> list[psutil.Process]:
    """Those of homes below a folder."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if any(word.endswith("keep.py") for word in words) and words[-1].startswith(str(base)):
            found.append(process)
    return found


def post(server: Server, path: str, body: dict[str, Any]) -> tuple[int, Any]:
    import aiohttp

    async def send() -> tuple[int, Any]:
        async with aiohttp.ClientSession() as http, http.post(server.url + path, json=body) as answer:
            return answer.status, await answer.json()

    return asyncio.run(send())


def test_a_training_outlives_comfyui_and_the_next_one_stops_it(
    comfyui_path: Path, comfyui_python: Path, tmp_path: Path, quickstart: Any, request: pytest.FixtureRequest
) -> None:
    prompt = quickstart(LoRATrainingConfig={"max_train_steps": 100_000}, WanLoRATrainer={"run": "in the background", "output_name": "far"})
    request.addfinalizer(lambda: [process.kill() for process in keepers(tmp_path)])  # what it trains saves and stops then
    with started(comfyui_path, comfyui_python, tmp_path, "pack") as first:
        settings = json.loads((first.home / "config.json").read_text())
        # the generations of this workflow go ahead, next to the training
        (first.home / "config.json").write_text(json.dumps({**settings, "queue": {"generation": "go_ahead"}}))

        def job() -> Any:
            trainings = asyncio.run(first.get("/musubi_tuner/jobs?kind=training"))["jobs"]
            return trainings[0] if trainings else None

        outcome = asyncio.run(first.queue(prompt))
        assert outcome.kind == "success", outcome.error
        assert any("in the background" in text for _, text in outcome.texts)
        seen = until(lambda: (now := job()) and now["step"] > 2 and now)
        assert seen["background"] and "stop" in seen["can"]
        detail = asyncio.run(first.get(f"/musubi_tuner/jobs/{seen['id']}"))
        assert {"name": "max_train_steps", "value": 100_000, "default": 1600} in detail["settings"]
        made_by = asyncio.run(first.get(detail["workflow"]))
        assert any(node["class_type"] == "MusubiTuner_WanLoRATrainer" for node in made_by["prompt"].values())
        first.process.kill()
        first.process.wait()
    training = psutil.Process(seen["pid"])
    assert training.is_running()
    with running(comfyui_path, comfyui_python, tmp_path) as second:

        def again() -> Any:
            return asyncio.run(second.get(f"/musubi_tuner/jobs/{seen['id']}"))

        found = again()
        assert (found["pid"], found["state"]) == (training.pid, "running") and found["step"] > seen["step"]
        assert post(second, f"/musubi_tuner/jobs/{seen['id']}/request", {"name": "save"})[0] == 200
        until(lambda: [one for one in again()["answers"] if (one["name"], one["answer"]) == ("save", "done")])  # a stop comes before it
        assert post(second, f"/musubi_tuner/jobs/{seen['id']}/request", {"name": "stop"})[0] == 200
        ended = until(lambda: (now := again())["state"] == "ended" and now)
        assert ended["outcome"] == "stopped" and "state saved" in ended["text"]
        assert [one["name"] for one in ended["answers"] if one["answer"] == "done"] == ["save"]
        assert {one["content"] for one in ended["saves"]} == {"lora", "state"}
        assert until(lambda: not training.is_running() or training.status() == psutil.STATUS_ZOMBIE)
        until(lambda: asyncio.run(second.get("/musubi_tuner/jobs"))["queue"]["keeper"] is None)
