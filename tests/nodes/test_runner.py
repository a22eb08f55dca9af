"""Jobs: real child processes are started, followed, stopped and cleaned up."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

LISTENING = """
import sys, threading, time, os
stop = threading.Event()
threading.Thread(target=lambda: (sys.stdin.readline(), stop.set()), daemon=True).start()
for step in range(1, 2000):
    print(f"\\rsteps: {step//20}%|█▎        | {step}/2000 [00:0{step%10}<00:07, 1.10it/s, "
        f"avr_loss={1/step:.4f}]", end="", file=sys.stderr, flush=True)
    if stop.wait(0.02):
        print("state saved", flush=True)
        sys.exit(3)
"""
STUBBORN = """
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import signal,time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(300)"])
print("child", child.pid, flush=True)
time.sleep(300)
"""


@pytest.fixture
def start(part: Any, tmp_path: Path) -> Any:
    runner, folder, environment = part("nodes.jobs.runner"), part("nodes.jobs.folder"), part("nodes.jobs.environment")

    async def begin(code: str, **options: Any) -> Any:
        job_folder = folder.JobFolder.create(tmp_path, "some_tool")
        command = runner.Command(
            [sys.executable, "-c", code], environment.child_environment(str(job_folder.path)), job_folder.path, **options
        )
        return await runner.start(job_folder, command)

    return begin


async def until(condition: Any, seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "did not happen in time"
        await asyncio.sleep(0.02)


def gone(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def test_progress_is_read_from_a_bar_that_uses_carriage_returns(start: Any, part: Any) -> None:
    async def story() -> Any:
        job = await start(LISTENING, engine="musubi-tuner")
        await until(lambda: job.progress.step > 3)
        assert job.progress.total == 2000
        await until(lambda: job.progress.rate.endswith("/it") or job.progress.rate.endswith("it/s"))
        assert job.progress.left
        await part("nodes.jobs.runner").stop(job)
        return job

    job = asyncio.run(story())
    assert job.progress.losses[1] == 1.0
    assert "avr_loss" in job.folder.log.read_text(encoding="utf-8")


def test_a_listening_job_stops_gracefully(start: Any, part: Any) -> None:
    async def story() -> Any:
        job = await start(LISTENING, engine="musubi-tuner")
        await until(lambda: job.progress.step > 1)
        await part("nodes.jobs.runner").stop(job)
        return job

    job = asyncio.run(story())
    assert job.stopped and job.returncode == 3
    assert job.folder.log.read_text(encoding="utf-8").endswith("state saved\n")
    status = job.folder.status()
    assert (status["state"], status["outcome"], status["returncode"]) == ("ended", "stopped", 3)
    assert not psutil.pid_exists(job.pid)


def test_a_job_that_ignores_everything_is_killed_with_its_children(start: Any, part: Any) -> None:
    async def story() -> tuple[Any, int]:
        job = await start(STUBBORN)
        await until(lambda: "child" in job.folder.log.read_text())
        child = int(job.folder.log.read_text().split()[1])
        await part("nodes.jobs.runner").stop(job)
        return job, child

    job, child = asyncio.run(story())
    assert gone(job.pid)
    asyncio.run(until(lambda: gone(child)))  # a signal takes a moment, of a process that is not ours


def test_children_left_behind_by_a_job_that_ends_are_killed(start: Any) -> None:
    code = "import subprocess, sys; print(subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(300)']).pid, flush=True)"

    async def story() -> Any:
        job = await start(code)
        await until(lambda: job.ended)
        return job

    job = asyncio.run(story())
    child = int(job.folder.log.read_text())
    asyncio.run(until(lambda: gone(child)))


def test_the_environment_is_scrubbed(start: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "PYTORCH_CUDA_ALLOC_CONF"):
        monkeypatch.setenv(name, "poison")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    code = "import json, os; print(json.dumps(dict(os.environ)))"

    async def story() -> Any:
        job = await start(code)
        await until(lambda: job.ended)
        return job

    job = asyncio.run(story())
    seen = json.loads(job.folder.log.read_text(encoding="utf-8"))
    assert "poison" not in seen.values()
    assert seen["CUDA_VISIBLE_DEVICES"] == "1"
    assert (seen["PYTHONUTF8"], seen["PYTHONUNBUFFERED"], seen["PYTHONNOUSERSITE"]) == ("1", "1", "1")
    assert seen["MUSUBITUNER_JOB_DIR"] == str(job.folder.path)


def test_japanese_output_survives_being_cut_inside_a_character(part: Any) -> None:
    progress = part("nodes.jobs.progress").Progress()
    follower = part("nodes.jobs.musubi_log").LogFollower(progress)
    for byte in "saving checkpoint: /out/猫の動画.safetensors\n".encode():
        follower.feed(bytes([byte]))
    assert progress.phase == "saving 猫の動画.safetensors"


def test_a_failed_job_reports_the_real_error_and_its_log(start: Any) -> None:
    code = "import sys; print('INFO:x:fine'); sys.stderr.write('ERROR: データがない: clip.mp4 is truncated\\nremove it\\n'); sys.exit(1)"

    async def story() -> Any:
        job = await start(code)
        await until(lambda: job.ended)
        return job

    job = asyncio.run(story())
    assert job.folder.status()["outcome"] == "failed"
    assert job.error() == f"データがない: clip.mp4 is truncated\nremove it\nThe whole log: {job.folder.log}"


def test_jobs_run_beside_a_blocked_caller_loop(start: Any) -> None:
    async def story() -> None:
        job = await start("print('done')")
        end = time.monotonic() + 120
        while not job.ended and time.monotonic() < end:
            time.sleep(0.05)  # a synchronous node blocks ComfyUI's loop like this
        assert job.ended

    asyncio.run(story())


@pytest.mark.skipif(os.name != "posix", reason="signals a process from outside")
def test_a_job_killed_by_the_system_says_so(start: Any) -> None:
    async def story() -> Any:
        job = await start("import time; time.sleep(300)")
        os.kill(job.pid, 9)
        await until(lambda: job.ended)
        return job

    assert "killed by the system" in asyncio.run(story()).error()


def test_end_of_stdin_reaches_the_child_when_we_die(part: Any, tmp_path: Path) -> None:
    """The runner's process is killed; a foreign script under `guarded.py` does not outlive it."""
    import subprocess

    root = Path(__file__).resolve().parents[2]
    script = tmp_path / "foreign.py"
    script.write_text(f"import os, time\nopen({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid()))\ntime.sleep(300)\n")
    parent = subprocess.Popen(
        [
            sys.executable,
            "-c",
            (
                "import subprocess, sys, time\n"
                f"p = subprocess.Popen([sys.executable, {str(root / 'nodes/jobs/guarded.py')!r}, {str(script)!r}], "
                f"stdin=subprocess.PIPE, start_new_session=True)\n"
                "time.sleep(300)\n"
            ),
        ]
    )
    asyncio.run(until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text()))
    child = int((tmp_path / "pid").read_text())
    parent.kill()
    parent.wait()
    asyncio.run(until(lambda: gone(child)))


def test_a_job_cancelled_while_it_starts_leaves_no_process(start: Any, tmp_path: Path) -> None:
    async def story() -> None:
        task = asyncio.ensure_future(start("import time; time.sleep(300)"))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(story())
    started = list(tmp_path.rglob("status.json"))
    assert started
    for status in started:
        assert not psutil.pid_exists(json.loads(status.read_text())["pid"])
