"""In a real ComfyUI page: every button of a training does what it says, in files and on the page, and a second window shows the same.
Needs COMFYUI_PATH, Chromium and its driver."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest
from browser import Browser

from .test_comfyui import Server, id_of, quickstart, started
from .test_comfyui_background import keepers, until
from .test_trainings_in_comfyui import READY, SECONDS

__all__ = ["quickstart"]
pytestmark = [pytest.mark.comfyui, pytest.mark.slow, pytest.mark.timeout(1500)]
GENERATING = ("VideoOutput", "VideoComparison", "VideoInput", "WanVideoGenerator", "WanVideoGenerator")
SAMPLES = {"sample_prompts": "a red chessboard", "sample_every_n_steps": 100_000, "sample_frames": 5, "sample_steps": 2}
SIZE = {"sample_width": 64, "sample_height": 64}
TOASTS = "[...document.querySelectorAll('.p-toast-summary')].map(one => one.innerText)"
LONG, SHORT = 3000, 3


class Window:
    """What somebody does with the tab in one window."""

    def __init__(self, browser: Browser) -> None:
        self.browser = browser
        self.handle = browser.handle()

    def open(self, url: str) -> float:
        """The page, and then the tab. Returns when (`time.monotonic`) the page was ready."""
        self.browser.open(url)
        self.browser.wait(READY, SECONDS)
        self.browser.wait("app.extensionManager.workflow?.activeWorkflow ? 1 : 0", SECONDS)
        ready = time.monotonic()
        self.browser.run("await app.extensionManager.command.execute('Workspace.ToggleSidebarTab.musubi-tuner-trainings'); return 1;")
        return ready

    def look(self) -> None:
        self.browser.to(self.handle)

    def show(self, job: str) -> None:
        row = f"document.querySelector(`.mt-open[data-id='{job}']`)"
        self.browser.wait(f"{row} ? 1 : 0", SECONDS)
        self.browser.run(f"{row}.click(); return 1;")  # rows move as trainings begin and end
        self.shows(job)
        self.browser.wait("document.querySelector('.mt-detail .mt-title')?.textContent ? 1 : 0", SECONDS)

    def back(self) -> None:
        self.browser.click("document.querySelector('.mt-detail header button')")

    def press(self, words: str) -> None:
        button = f"[...document.querySelectorAll('.mt-detail .mt-button')].find(one => one.textContent.trim() === `{words}`)"
        self.browser.wait(f"{button} ? 1 : 0", SECONDS)
        self.browser.click(button)

    def shows(self, job: str) -> None:
        self.browser.wait(f"document.querySelector('.mt-detail')?.dataset.job === '{job}' ? 1 : 0", SECONDS)

    def sees(self, state: str) -> None:
        self.browser.wait(f"document.querySelector('.mt-detail .mt-badge')?.innerText.trim() === '{state}' ? 1 : 0", SECONDS)


class Jobs:
    """What the server says of trainings."""

    def __init__(self, server: Server) -> None:
        self._server = server

    def of(self, name: str) -> list[dict[str, Any]]:
        """The newest first."""
        jobs = asyncio.run(self._server.get("/musubi_tuner/jobs?kind=training"))["jobs"]
        return [job for job in jobs if job["name"] == name]

    def detail(self, job: str) -> dict[str, Any]:
        return dict(asyncio.run(self._server.get(f"/musubi_tuner/jobs/{job}")))

    def answered(self, job: str, name: str) -> None:
        until(lambda: [one for one in self.detail(job)["answers"] if (one["name"], one["answer"]) == (name, "done")])


def test_every_button_of_a_training_works_and_two_windows_show_the_same(
    comfyui_path: Path, comfyui_python: Path, tmp_path: Path, browser: Browser, quickstart: Any, request: pytest.FixtureRequest
) -> None:
    base, downloads = tmp_path / "base", tmp_path / "downloads"
    (base / "user/default").mkdir(parents=True)
    # else ComfyUI shows its templates above everything, some time after it has opened
    (base / "user/default/comfy.settings.json").write_text('{"Comfy.TutorialCompleted": true}')
    downloads.mkdir()
    request.addfinalizer(lambda: [process.kill() for process in keepers(tmp_path)])
    with started(comfyui_path, comfyui_python, base, "musubi-tuner") as server:
        for name, steps in (("short", SHORT), ("long", LONG)):
            prompt = quickstart(
                LoRATrainingConfig={"max_train_steps": steps},
                SamplingConfig={**SAMPLES, **SIZE},
                WanLoRATrainer={"run": "in the background", "output_name": name},
            )
            for node in GENERATING:
                del prompt[id_of(prompt, node)]
            outcome = asyncio.run(server.queue(prompt, seconds=SECONDS))
            assert outcome.kind == "success", outcome.error
        jobs = Jobs(server)
        browser.downloads(downloads)
        first = Window(browser)
        first.open(server.url)
        _finished(first, jobs, downloads)
        _running(first, jobs, server.home)
        browser.new_window()
        second = Window(browser)
        began = time.monotonic()
        ready = second.open(server.url)
        _two_windows(first, second, jobs, began, ready)
        _ended(first, jobs)


def _finished(window: Window, jobs: Jobs, downloads: Path) -> None:
    """Its LoRA is downloaded as it lies on disk; it is trained further by as many steps as are asked for, also after that
    was taken out of the queue."""
    job = until(lambda: [one for one in jobs.of("short") if one["outcome"] == "finished"])[0]
    window.show(job["id"])
    window.press("Download the LoRA")
    until(lambda: list(downloads.glob("short*.safetensors")))
    [lora] = [file for file in jobs.detail(job["id"])["files"] if file["content"] == "lora"][-1:]
    run = Path(jobs.detail(job["id"])["run_folder"])
    assert next(downloads.glob("*.safetensors")).read_bytes() == next(run.rglob(lora["name"])).read_bytes()

    window.browser.run("document.querySelector('.mt-steps').value = '4'; return 1;")
    window.press("Train further")
    further = until(lambda: [one for one in jobs.of("short") if one["id"] != job["id"]])[0]
    window.shows(further["id"])
    window.press("Take out of the queue")  # the long one has the GPU
    window.sees("taken out")
    assert jobs.detail(further["id"])["outcome"] == "removed"
    window.press("Queue again")
    again = until(lambda: [one for one in jobs.of("short") if one["state"] == "queued"])[0]
    window.shows(again["id"])
    window.press("Copy the path")
    window.browser.wait("document.querySelector('.mt-detail .mt-said').innerText.includes('/runs/short-') ? 1 : 0", SECONDS)
    window.back()


def _running(window: Window, jobs: Jobs, home: Path) -> None:
    """It pauses and resumes; it samples and saves when it is told to."""
    job = until(lambda: [one for one in jobs.of("long") if one["step"] > 1])[0]["id"]
    window.show(job)
    window.press("Pause")
    window.sees("paused")
    until(lambda: jobs.detail(job)["paused"])
    log = home / "jobs" / job / "metrics.jsonl"
    before = log.read_text().count('"step"')
    time.sleep(1.5)
    assert log.read_text().count('"step"') == before, "a training that pauses makes no steps"
    window.press("Resume")
    window.sees("running")
    until(lambda: log.read_text().count('"step"') > before)

    shown = len(jobs.detail(job)["samples"])
    window.press("Sample now")
    jobs.answered(job, "sample")
    until(lambda: len(jobs.detail(job)["samples"]) > shown)
    window.browser.wait(f"document.querySelectorAll('.mt-sample').length > {shown} ? 1 : 0", SECONDS)
    window.press("Save now")
    jobs.answered(job, "save")
    saves = jobs.detail(job)["saves"]
    assert {one["content"] for one in saves} == {"lora", "state"}
    for one in saves:
        name = jobs.detail(job)["files"][one["file"]]["name"]
        assert list((home / "runs").glob(f"long-*/**/{name}")), "what it says is saved is there"
    window.browser.wait("[...document.querySelectorAll('.mt-detail a[download]')].length ? 1 : 0", SECONDS)


def _two_windows(first: Window, second: Window, jobs: Jobs, began: float, ready: float) -> None:
    """The second was opened while it runs."""
    job = jobs.of("long")[0]["id"]
    second.browser.wait(f"document.querySelector(`.mt-open[data-id='{job}'] .mt-badge`)?.innerText.trim() === 'running' ? 1 : 0", SECONDS)
    print(f"the second window: page ready {ready - began:.1f} s after it was opened, the row {time.monotonic() - ready:.1f} s after that")
    second.show(job)
    second.press("Stop after this epoch")
    second.sees("stopped")
    first.look()
    first.sees("stopped")
    ended = jobs.detail(job)
    assert ended["outcome"] == "stopped" and "state saved" in ended["text"]
    # every epoch of this set of clips is as long as the first
    assert ended["step"] % (LONG // (ended["epochs"] or LONG)) == 0
    told = first.browser.run(f"return {TOASTS};")
    second.look()
    told += second.browser.run(f"return {TOASTS};")
    assert [one for one in told if one.startswith("long")] == ["long: stopped"], "one of two windows tells of it"


def _ended(window: Window, jobs: Jobs) -> None:
    """A stopped one goes on from its state, is killed when that is asked twice, and shows what made it."""
    window.look()
    stopped = jobs.of("long")[0]
    window.press("Continue to the end")
    again = until(lambda: [one for one in jobs.of("long") if one["id"] != stopped["id"] and one["step"] > stopped["step"]])[0]
    assert again["first_step"] == stopped["step"]
    window.shows(again["id"])
    window.press("Kill")
    window.press("End it now")
    ended = until(lambda: (now := jobs.detail(again["id"]))["state"] == "ended" and now)
    assert ended["outcome"] != "finished"
    window.browser.wait("document.querySelector('.mt-detail .mt-buttons').innerText.includes('Continue to the end') ? 1 : 0", SECONDS)
    window.press("Open its workflow")
    trainers = "app.graph.nodes.filter(node => node.type === 'MusubiTuner_WanLoRATrainer')"
    window.browser.wait(f"{trainers}[0]?.widgets.find(one => one.name === 'output_name').value === 'long' ? 1 : 0", SECONDS)
    finished = until(lambda: [one for one in jobs.of("short") if one["first_step"] == SHORT and one["state"] == "ended"])[0]
    assert (finished["outcome"], finished["step"]) == ("finished", SHORT + 4)
