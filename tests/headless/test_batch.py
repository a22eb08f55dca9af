"""Many prompts at once: one load of the models, failures reported, the rest made; shared out over GPUs."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from pathlib import Path
from typing import Any

import psutil
import pytest


@pytest.fixture
def host(part: Any, home: Path) -> Any:
    return part("headless.terminal").TerminalHost(home)


@pytest.fixture
def batch(part: Any, host: Any, home: Path) -> Any:
    """A function that runs the batch node on the demo models."""
    files = {"dit": "demo_wan_t2v.safetensors", "vae": "demo_wan_vae.safetensors", "t5": "demo_umt5.safetensors"}
    models = {"architecture": "wan", "task": "t2v-1.3B", **{name: str(home / "demo" / "models" / file) for name, file in files.items()}}

    def run(**inputs: Any) -> Any:
        node = part("nodes.batch").BatchProcessor()
        small = {"width": 32, "height": 32, "video_length": 5, "infer_steps": 1, "guidance_scale": 1.0}
        given = part("nodes.checks").prepared(node, host, {"models": models, **small, **inputs})
        return asyncio.run(node.run(host, **given))

    return run


@pytest.mark.slow
def test_prompts_of_all_sources_become_videos_with_one_load_and_bad_ones_are_reported(batch: Any, host: Any, home: Path) -> None:
    host.input_dir.mkdir()
    (host.input_dir / "more.txt").write_text("# a comment\nfrom a file\n", encoding="utf-8")
    result = batch(
        prompts="a cat 猫 --w 48\n\na dog --w 33\n",
        prompt_file="more.txt",
        prompt_list=["from a list", ["and another --d 7"]],
        seed=40,
        filename_prefix="many/clip",
    )
    videos, paths, report, _ = result.values
    assert [Path(path).name for path in paths] == ["clip_00001.mp4", "clip_00002.mp4", "clip_00003.mp4", "clip_00004.mp4"]
    assert videos == paths
    assert "4 of 5 prompts made a video, 1 failed" in report
    assert "2. FAILED: a dog --w 33 --d 41\n" in report and "nearest is 32x32" in report
    assert "1. clip_00001.mp4: a cat 猫 --w 48 --d 40" in report
    jobs = list((home / "jobs").iterdir())
    assert len(jobs) == 1
    assert (jobs[0] / "log.txt").read_text(encoding="utf-8").count("Loading DiT model(s)") == 1
    command = json.loads((jobs[0] / "command.json").read_text(encoding="utf-8"))["argv"]
    assert "--from_file" in command and "--prompt" not in command
    from musubi_backend.inference.video_file import read_images

    assert read_images(paths[0])[0][0].shape == (32, 48, 3), "each file belongs to its prompt"
    assert read_images(paths[1])[0][0].shape == (32, 32, 3)


@pytest.mark.slow
def test_prompts_are_shared_out_over_gpus_with_a_process_each(batch: Any, host: Any, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "gpus", lambda: ["GPU-a", "GPU-b", "GPU-c"])
    result = batch(prompts="one\ntwo\nthree", gpus=2)
    assert [line.rsplit(": ", 1)[1] for line in result.values[2].splitlines()[1:]] == ["one --d 0", "two --d 1", "three --d 2"]
    jobs = list((home / "jobs").iterdir())
    assert sorted((job / "prompts.txt").read_text().split(" ")[0] for job in jobs) == ["one", "two"]
    assert len(result.values[1]) == 3


def test_a_job_sees_only_its_gpu(part: Any, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,GPU-5,6")
    engine, folder = part("nodes.jobs.engine"), part("nodes.jobs.folder").JobFolder.create(home, "x")
    settings = part("nodes.jobs.config").load(home)
    task = part("nodes.jobs.task").Task("wan_generate_video")
    assert engine.command(settings, folder, task, gpu="GPU-5").env["CUDA_VISIBLE_DEVICES"] == "GPU-5"
    assert engine.command(settings, folder, task).env["CUDA_VISIBLE_DEVICES"] == "4,GPU-5,6"
    assert part("nodes.jobs.environment").visible_gpus(2) == ["4", "GPU-5"]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert part("nodes.jobs.environment").visible_gpus(2) == ["0", "1"]


@pytest.mark.parametrize(("makes", "ending", "said"), [("VIDEO", "mp4", "a video"), ("IMAGE", "png", "an image")])
def test_what_is_finished_goes_out_as_what_the_model_makes(
    part: Any, host: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, makes: str, ending: str, said: str
) -> None:
    module, made = part("nodes.batch"), tmp_path / f"1.{ending}"
    (tmp_path / "out").mkdir()
    shown: list[str] = []
    monkeypatch.setattr(host, "progress", lambda value, total, text, preview=None: shown.append(text))
    for publish in (module._publish, module._keep_finished):
        made.write_bytes(b"made")
        prompts = [module.Prompt(1, "a dog", 5, made), module.Prompt(2, "a cat", 6, problem="no memory")]
        result = publish(host, prompts, tmp_path / "out" / "many", makes)
        if result is not None:
            videos, paths, report, images = result.values
            assert (videos, images) == ((paths, []) if makes == "VIDEO" else ([], paths)) and len(paths) == 1
            assert report.startswith(f"1 of 2 prompts made {said}, 1 failed") and "FAILED: a cat" in report
    assert shown == [f"stopped; 1 of 2 prompts made {said}: many_00002.{ending}"]


@pytest.mark.slow
def test_when_every_prompt_fails_the_node_fails_and_says_why(batch: Any, part: Any) -> None:
    with pytest.raises(part("backend.musubi_backend.errors").UserError, match=r"(?s)no prompt made a video.*nearest"):
        batch(prompts="a dog --w 33\na cat --f 6")


def test_bad_prompts_are_rejected_before_anything_runs(batch: Any, part: Any, home: Path) -> None:
    error = part("backend.musubi_backend.errors").UserError
    for inputs, words in (
        ({}, "no prompts"),
        ({"prompts": "a dog\n--w 32"}, "prompts, line 2: begins with an option"),
        ({"prompts": "a dog --i /etc/passwd"}, "outside the folders"),
        ({"prompts": "a dog --ci -1:/etc/passwd"}, "outside the folders"),
        ({"prompts": "a dog --lw /etc/passwd"}, "outside the folders"),
        ({"prompt_file": "/etc/passwd"}, "outside the folders"),
        ({"prompt_list": [1]}, "expected texts"),
        ({"prompts": "a dog", "width": 33}, "multiple of 16"),
        ({"prompts": "a dog", "filename_prefix": "../x"}, "file name"),
    ):
        with pytest.raises(error, match=words):
            batch(**inputs)
    assert not (home / "jobs").exists() or not list((home / "jobs").iterdir())


def test_images_named_in_a_line_become_whole_paths(part: Any, host: Any) -> None:
    host.input_dir.mkdir()
    (host.input_dir / "a b.png").write_bytes(b"")
    guarded = part("nodes.prompt_batch").guarded
    whole = str(host.input_dir / "a b.png")
    assert guarded(host, "a dog --i a b.png --d 3", "x") == f"a dog --i {whole} --d 3"
    assert guarded(host, "a dog --i 0:a b.png;;;-1:a b.png", "x") == f"a dog --i 0:{whole};;;-1:{whole}"


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="kills a process")
def test_prompts_of_a_killed_process_get_one_each(batch: Any, host: Any, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    killed: list[int] = []

    def kill_the_first_and_whoever_draws_a_whale() -> None:
        for status in (home / "jobs").glob("*/status.json"):
            state = json.loads(status.read_text(encoding="utf-8"))
            first = not killed or "whale" in (status.parent / "prompts.txt").read_text(encoding="utf-8")
            if state["state"] != "ended" and first and state["pid"] not in killed:
                killed.append(state["pid"])
                os.kill(state["pid"], signal.SIGKILL)

    monkeypatch.setattr(host, "check_interrupted", kill_the_first_and_whoever_draws_a_whale)
    report = batch(prompts="a whale\na dog").values[2]
    assert "1 of 2 prompts made a video, 1 failed" in report
    assert "1. FAILED: a whale --d 0\n   it was killed by the system" in report
    assert "2. batch_00001.mp4: a dog --d 1" in report
    assert [len((job / "prompts.txt").read_text().splitlines()) for job in sorted((home / "jobs").iterdir())].count(1) == 2


class Cancelled(Exception):
    """What a host raises when the user cancels."""


@pytest.mark.slow
def test_cancelling_ends_the_processes_on_all_gpus(batch: Any, host: Any, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def running() -> list[int]:
        states = [json.loads(path.read_text(encoding="utf-8")) for path in (home / "jobs").glob("*/status.json")]
        return [state["pid"] for state in states if state["state"] != "ended"]

    pids: list[int] = []

    def cancel_when_both_run() -> None:
        if len(found := running()) == 2 or pids:  # pressed once more while they end
            pids[:] = pids or found
            raise Cancelled

    monkeypatch.setattr(host, "gpus", lambda: ["GPU-a", "GPU-b"])
    monkeypatch.setattr(host, "check_interrupted", cancel_when_both_run)
    with pytest.raises(Cancelled):
        batch(prompts="one\ntwo", infer_steps=1000)
    assert len(pids) == 2
    assert running() == []
    assert not any(psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE for pid in pids)
