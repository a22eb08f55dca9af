"""A stop reaches into forward and backward passes, samples and VAEs; what it saves is whole, and what continues has the same bits."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from musubi_backend import events, job
from musubi_backend.architectures.wan.model import WanAttentionBlock
from musubi_backend.demo.models import write_models
from musubi_backend.encoders.wan_vae import WanVAE
from musubi_backend.training import checkpoints
from musubi_backend.training.state import TrainingState

BACKEND = Path(__file__).resolve().parents[2] / "backend"
SETTINGS = {"network_dropout": 0.1, "gradient_accumulation_steps": 3, "lr_scheduler": "cosine", "max_train_steps": 4}


def newest_state(out: Path) -> Path:
    return max(out.glob("*-state"))


def in_block_call(monkeypatch: pytest.MonkeyPatch, number: int, do: Callable[[], object]) -> list[int]:
    """Call `do` while a transformer block runs for the `number`th time. Returns the list that counts the calls."""
    forward, calls = WanAttentionBlock.forward, []

    def counting(self: WanAttentionBlock, *arguments: Any) -> torch.Tensor:
        calls.append(len(calls) + 1)
        if len(calls) == number:
            do()
        return forward(self, *arguments)

    monkeypatch.setattr(WanAttentionBlock, "forward", counting)
    return calls


# a micro-step is two calls, with checkpointing three: the first block runs again in backward
@pytest.mark.parametrize(
    ("flags", "call"),
    [((), 11), (("--gradient_checkpointing",), 18), (("--gradient_checkpointing",), 17), (("--blocks_to_swap", "1"), 11)],
    ids=["forward", "recomputed", "between passes", "swapped"],
)
def test_a_stop_inside_a_pass_leaves_at_the_next_block_and_resumes_to_the_same_bits(
    flags: tuple[str, ...], call: int, project: Any, same: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.train("whole", *flags, **SETTINGS)
    with monkeypatch.context() as patch:
        calls = in_block_call(patch, call, job.request_stop)
        assert project.refused("part", *flags, **SETTINGS) == 3
        assert len(calls) == call, "no further block ran"
    job._stop.clear()
    project.train("part", *flags, resume=newest_state(project.folder / "out/part"), **SETTINGS)
    assert same.bits(project.lora("part"), project.lora("whole"))


def test_a_stop_between_the_blocks_of_backward_is_heeded(project: Any, same: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    """The gradient of the last block has come when the stop is asked for: the block before gets none."""
    project.train("whole", **SETTINGS)
    passed = []

    def backward(gradient: torch.Tensor) -> None:
        passed.append(1)
        if len(passed) == 5:  # within the second window of three micro-steps
            job.request_stop()

    forward = WanAttentionBlock.forward

    def listening(self: WanAttentionBlock, x: torch.Tensor, *arguments: Any) -> torch.Tensor:
        out = forward(self, x, *arguments)
        if x.requires_grad:
            x.register_hook(backward)  # what the last block passes on
        return out

    with monkeypatch.context() as patch:
        patch.setattr(WanAttentionBlock, "forward", listening)
        assert project.refused("part", **SETTINGS) == 3
    assert len(passed) == 5
    job._stop.clear()
    project.train("part", resume=newest_state(project.folder / "out/part"), **SETTINGS)
    assert same.bits(project.lora("part"), project.lora("whole"))


def test_memory_that_runs_out_in_a_step_keeps_what_was_learned_before(
    project: Any, same: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise RuntimeError("CUDA out of memory")

    project.train("whole", max_train_steps=4)
    with monkeypatch.context() as patch:
        in_block_call(patch, 5, fail)
        assert project.refused("part", max_train_steps=4) == 1
    assert "ERROR: the GPU's memory is full while training clip0_" in capsys.readouterr().err
    state = project.folder / "out/part/cat-step00000002-state"
    project.train("part", resume=state, max_train_steps=4)
    assert same.bits(project.lora("part"), project.lora("whole"))


def test_a_stop_while_loading_leaves_before_the_model_is_there(
    project: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    job.request_stop()
    assert project.refused("part") == 3
    assert "stopped while loading dit.safetensors" in capsys.readouterr().err
    assert not list((project.folder / "out/part").glob("*.safetensors"))


# --- samples


@pytest.fixture
def samples(project: Any, build: SimpleNamespace) -> dict[str, Any]:
    pytest.importorskip("diffusers")
    pytest.importorskip("transformers")
    models = write_models(project.folder / "models")
    project.config, project.dit = build.caches(project.folder, clips=2, frames=5, side=32, text_dim=64), models["dit"]
    prompts = project.folder / "prompts.txt"
    prompts.write_text("a cat --w 32 --h 32 --f 5 --s 3 --d 3 --l 1\n", encoding="utf-8")
    return {"vae": models["vae"], "t5": models["t5"], "sample_prompts": prompts, "max_train_steps": 4}


@pytest.mark.slow
@pytest.mark.parametrize("where", ["sampling", "decoding"])
def test_a_stop_inside_a_sample_loses_nothing(
    where: str, project: Any, same: SimpleNamespace, samples: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    project.train("whole", **{**samples, "sample_prompts": None})
    with monkeypatch.context() as patch:
        if where == "sampling":
            in_block_call(patch, 2 * 2 + 2, job.request_stop)  # after two steps, in the second evaluation of the sample
        else:
            decode = WanVAE.decode

            def stopping(self: WanVAE, latents: torch.Tensor) -> torch.Tensor:
                self.model.decoder.mid_block.register_forward_hook(lambda *_: job.request_stop())
                self.model.decoder.conv_out.register_forward_hook(lambda *_: pytest.fail("the decoding continued"))
                return decode(self, latents)

            patch.setattr(WanVAE, "decode", stopping)
        assert project.refused("part", sample_every_n_steps=2, **samples) == 3
    out = project.folder / "out/part"
    assert not (out / "sample").exists()
    job._stop.clear()
    project.train("part", resume=out / "cat-step00000002-state", **{**samples, "sample_prompts": None})
    assert same.bits(project.lora("part"), project.lora("whole"))


@pytest.mark.slow
def test_the_last_samples_come_when_everything_is_saved(
    project: Any, samples: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(job.JOB_DIR_VARIABLE, str(tmp_path))
    monkeypatch.setattr(job, "watch_for_stop", lambda: None)  # nobody writes to our stdin
    project.train("whole", "--save_state_on_train_end", sample_every_n_steps=2, **samples)
    log = events.read(tmp_path / events.FILE_NAME)
    order = [(one.kind, getattr(one, "content", ""), one.step) for one in log if isinstance(one, (events.Sample, events.Saved))]
    assert order == [("sample", "", 2), ("saved", "the state", 4), ("saved", "the LoRA", 4), ("sample", "", 4)]


# --- saving


@pytest.mark.skipif(sys.platform == "win32", reason="sends signals to itself")
def test_no_signal_breaks_a_save(project: Any, same: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C, a launcher's SIGTERMs and Ctrl-C again, all while the state is written: it is written, then the program ends."""
    save = TrainingState.save

    def interrupted(self: TrainingState, folder: Path) -> None:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGTERM, signal.SIGINT):
            os.kill(os.getpid(), number)
        save(self, folder)

    project.train("whole", max_train_steps=4)
    with monkeypatch.context() as patch:
        patch.setattr(TrainingState, "save", interrupted)
        assert project.refused("part", "--save_state", save_every_n_steps=2, max_train_steps=4) == 130
    job._stop.clear()
    project.train("part", resume=project.folder / "out/part/cat-step00000002-state", max_train_steps=4)
    assert same.bits(project.lora("part"), project.lora("whole"))


def test_a_stop_on_a_full_disk_saves_elsewhere(
    project: Any, small_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))

    def fill_and_stop() -> None:
        (small_disk / "filler").write_bytes(bytes(os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_frsize))
        job.request_stop()

    in_block_call(monkeypatch, 6, fill_and_stop)
    assert project.refused("part", output_dir=small_disk) == 3
    said = capsys.readouterr().err
    assert "cat-step00000002-state could not be written: the disk is full" in said
    assert f"continue with --resume {tmp_path / 'cat-step00000002-state'}" in said and (tmp_path / "cat-step00000002-state").is_dir()
    assert [path.name for path in small_disk.iterdir()] == ["filler"]


def test_the_request_is_answered_and_says_what_is_written(project: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The save waits until the answer names it: so slow is no disk, and no clock decides."""
    log = tmp_path / events.FILE_NAME
    monkeypatch.setenv(job.JOB_DIR_VARIABLE, str(tmp_path))
    monkeypatch.setattr(job, "watch_for_stop", lambda: None)  # nobody writes to our stdin
    monkeypatch.setattr(job.durations, "BEAT", 0.01)
    monkeypatch.setattr(job, "_answering", job.threading.Lock())
    save = checkpoints.Checkpoints.save_state

    def slow(self: checkpoints.Checkpoints, stem: str, *arguments: Any, **more: Any) -> Path:
        while f'"file": "{stem}-state"' not in log.read_text():
            time.sleep(0.01)
        return save(self, stem, *arguments, **more)

    monkeypatch.setattr(checkpoints.Checkpoints, "save_state", slow)
    in_block_call(monkeypatch, 6, job.request_stop)
    assert project.refused("part") == 3
    seen = events.read(log)
    assert [event.what for event in seen if isinstance(event, events.Keep)] == ["the steps after step 0", ""]
    (saving,) = [event for event in seen if isinstance(event, events.Saving) and event.content == "the state"]
    assert {event.total for event in seen if isinstance(event, events.Stopping) and event.file} >= {saving.bytes} and saving.bytes > 0
    assert isinstance(seen[-1], (events.Ended, events.Stopping))
    (ended,) = [event for event in seen if isinstance(event, events.Ended)]
    assert (ended.outcome, ended.text) == ("stopped", "stopped at step 2, state saved (run again to continue)")


# --- two processes

RANK = """
import os, sys, time
from pathlib import Path
from musubi_backend import __main__, job
from musubi_backend.training import checkpoints, loop
rank, shared = int(os.environ["RANK"]), Path(os.environ["SHARED"])
backward, save, done = loop.Loop._backward, checkpoints.Checkpoints.save_state, []
def stepping(self, *arguments):
    done.append(1)
    if len(done) == 3 and rank == 1:
        STORY
    return backward(self, *arguments)
def slow(self, *arguments, **more):
    (shared / "saving").touch()
    while not (shared / "continue").exists():
        time.sleep(0.01)
    return save(self, *arguments, **more)
loop.Loop._backward, checkpoints.Checkpoints.save_state = stepping, slow
sys.exit(__main__.main(sys.argv[1:]))
"""


def two_processes(project: Any, story: str, meanwhile: Callable[[list[subprocess.Popen[str]]], object]) -> list[tuple[int, str]]:
    """Train with two processes, of which the second does `story` in its third step; `meanwhile` is called while the state is saved.
    Returns exit codes and what was printed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "SHARED": str(project.folder)}
    environment = {**os.environ, **group, "PYTHONPATH": str(BACKEND), "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", RANK.replace("STORY", story), *project.argv("part", max_train_steps=6)],
            env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, encoding="utf-8",
        )
        for rank in range(2)
    ]  # fmt: skip
    while not (project.folder / "saving").exists() and processes[0].poll() is None:
        time.sleep(0.01)  # what waits without sleep takes a processor from the two that train
    meanwhile(processes)
    (project.folder / "continue").touch()
    printed = [process.communicate()[0] for process in processes]
    return [(process.returncode, text) for process, text in zip(processes, printed, strict=True)]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="sends signals")
def test_two_processes_leave_together_when_one_was_asked(project: Any) -> None:
    """While the first saves, the second is still there, and what a launcher sends breaks nothing."""

    def as_a_launcher(processes: list[subprocess.Popen[str]]) -> None:
        assert processes[1].poll() is None
        for _ in range(3):
            processes[0].send_signal(signal.SIGTERM)

    ended = two_processes(project, "job.request_stop()", as_a_launcher)
    assert [code for code, _ in ended] == [3, 3], ended
    assert all("stopped after step" in text for _, text in ended)
    assert list((project.folder / "out/part").glob("*-state"))


@pytest.mark.slow
def test_an_error_in_one_process_lets_the_other_save_and_is_the_only_message(project: Any) -> None:
    ended = two_processes(project, 'raise __main__.UserError("this item is broken")', lambda processes: None)
    assert [code for code, _ in ended] == [1, 1], ended
    assert "ERROR: this item is broken" in ended[1][1]
    assert "ERROR" not in ended[0][1] and "Traceback" not in ended[0][1], ended[0][1]
    assert (project.folder / "out/part/cat-step00000002-state").is_dir()
