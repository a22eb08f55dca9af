"""Threads that wait for each other sleep, and there are as many as the work gains from."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from musubi_backend import threads
from musubi_backend.dataset import clips
from musubi_backend.demo.clips import write_clips
from musubi_backend.options.option import CACHE_LATENTS, GENERATE, LORA_MERGE, TRAIN

ASK_OPENMP = {"OMP_DISPLAY_ENV": "TRUE"}  # any OpenMP prints what it took from its environment when it is loaded


def _clean(**more: str) -> dict[str, str]:
    """This process's environment without what says how threads are to work."""
    dropped = {threads.COUNT, *threads.PASSIVE, "LOCAL_WORLD_SIZE", "WORLD_SIZE", "CUDA_VISIBLE_DEVICES"}
    return {name: value for name, value in os.environ.items() if name not in dropped} | more


def _printed(repository: Path, folder: Path, **environment: str) -> str:
    """What a tool that computes prints. Its work is rejected at once: OpenMP is loaded by then."""
    (folder / "empty.safetensors").touch()
    files = ["--dit", str(folder / "empty.safetensors"), "--save_merged_model", str(folder / "merged.safetensors")]
    settings = _clean(PYTHONPATH=str(repository / "backend"), **ASK_OPENMP, **environment)
    command = [sys.executable, "-m", "musubi_backend", "merge_lora", *files]
    done = subprocess.run(command, env=settings, capture_output=True, text=True, check=False)
    assert "ERROR: " in done.stderr, done.stderr
    return done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="as GNU's OpenMP words it")
def test_a_tool_run_by_hand_waits_passively_unless_it_is_reported_otherwise(repository: Path, tmp_path: Path) -> None:
    printed = _printed(repository, tmp_path)
    assert "OMP_WAIT_POLICY = 'PASSIVE'" in printed
    assert "OMP_NUM_THREADS = '1'" in printed, "nothing large is computed"
    printed = _printed(repository, tmp_path, OMP_WAIT_POLICY="ACTIVE", OMP_NUM_THREADS="2")
    assert "OMP_WAIT_POLICY = 'ACTIVE'" in printed
    assert "OMP_NUM_THREADS = '2'" in printed


def test_jobs_wait_passively_unless_the_user_has_said_otherwise(part: Any, tmp_path: Path) -> None:
    child_environment = part("nodes.jobs.environment").child_environment
    assert threads.PASSIVE.items() <= child_environment(str(tmp_path), base={}).items()
    assert child_environment(str(tmp_path), base={"OMP_WAIT_POLICY": "ACTIVE"})["OMP_WAIT_POLICY"] == "ACTIVE"


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Sixteen processors, no GPU, nothing said in the environment."""
    for name in (threads.COUNT, "LOCAL_WORLD_SIZE", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(threads, "processors", lambda: 16)
    return monkeypatch


def _model(folder: Path, size: int) -> str:
    path = folder / f"{size}.safetensors"
    with path.open("wb") as file:
        file.truncate(size)
    return str(path)


def test_the_number_of_threads_follows_the_work(machine: pytest.MonkeyPatch, tmp_path: Path) -> None:
    large, tiny = _model(tmp_path, 200_000_000), _model(tmp_path, 3_000_000)

    def fitting(verb: str, **values: Any) -> int:
        files = [values[name] for name in ("dit", "vae") if values.get(name)]
        return threads.fitting(verb, threads.ThreadSettings.read(values), files)

    assert fitting(TRAIN, dit=tiny, vae=None) == 1, "sharing a tiny product takes longer than computing it"
    assert fitting(TRAIN, dit=large, vae=tiny) == 16
    assert fitting(GENERATE, dit=large, device="cpu") == 16
    assert fitting(GENERATE, dit=large, device="cuda:1") == 1, "a GPU computes"
    assert fitting(LORA_MERGE, dit=large, device="cpu") == 1, "several tensors at a time"
    assert fitting(CACHE_LATENTS, vae=large, num_workers=None) == 16
    assert fitting(CACHE_LATENTS, vae=large, num_workers=6) == 11, "decoders want processors too"
    assert fitting(CACHE_LATENTS, vae=large, num_workers=40) == 1
    machine.setenv("LOCAL_WORLD_SIZE", "4")
    assert fitting(TRAIN, dit=large, vae=None) == 4, "the processes of a training share the machine"


def test_decoding_takes_what_computing_leaves(machine: pytest.MonkeyPatch) -> None:
    assert threads.decoders(None) == 1, "an encoder on all processors"
    machine.setenv(threads.COUNT, "1")
    assert threads.decoders(None) == 15
    assert threads.decoders(3) == 3


def test_decoders_beside_each_other_share_the_processors(machine: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (clip,) = write_clips(tmp_path, count=1)
    machine.setattr(clips, "processors", lambda: 35)

    def used() -> int:
        frames = clips.frames_of(clip)
        frame = next(frames)
        opened = frames.gi_frame.f_locals["stream"].codec_context.thread_count
        frames.close()
        return opened if frame else 0

    with ThreadPoolExecutor(1, "", clips.share_processors, (5,)) as pool:
        assert pool.submit(used).result() == 7


def test_the_flag_counts_more_than_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(threads.COUNT, "2")
    threads.prepare(TRAIN, threads.ThreadSettings(), [])
    assert os.environ[threads.COUNT] == "2"
    threads.prepare(TRAIN, threads.ThreadSettings(cpu_threads=5), [])
    assert os.environ[threads.COUNT] == "5"


def test_the_setting_of_install_py_reaches_jobs_of_both_engines(part: Any, repository: Path, tmp_path: Path) -> None:
    config, engine, folder, task = (part(f"nodes.jobs.{name}") for name in ("config", "engine", "folder", "task"))
    checkout = tmp_path / "musubi-tuner"
    checkout.mkdir()
    (checkout / "wan_train_network.py").touch()
    settings = {"interpreter": sys.executable, "musubi_tuner": {"path": str(checkout), "python": sys.executable}}
    (tmp_path / "config.json").write_text(json.dumps(settings), encoding="utf-8")

    def installed(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(repository / "install.py"), "--home", str(tmp_path), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    def job(**changes: str) -> Any:
        path = tmp_path / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **changes}), encoding="utf-8")
        todo = task.Task("wan_train_network", launch=True)
        return engine.command(config.load(tmp_path), folder.JobFolder.create(tmp_path, "train"), todo)

    assert "--cpu_threads" not in job().argv
    assert installed("--cpu-threads", "3").returncode == 0
    assert job().argv[-2:] == ["--cpu_threads", "3"]
    foreign = job(engine="musubi-tuner")
    assert foreign.env[threads.COUNT] == "3"
    assert foreign.argv[foreign.argv.index("--num_cpu_threads_per_process") + 1] == "3"
    refused = installed("--cpu-threads", "many")
    assert refused.returncode == 1 and "--cpu-threads many" in refused.stdout and "Traceback" not in refused.stderr
    assert installed("--cpu-threads", "auto").returncode == 0
    assert "--cpu_threads" not in job(engine="builtin").argv
