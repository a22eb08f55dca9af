"""What a continued training takes from its state and what from the command: said as it is, and rejected before anything is loaded."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch
from musubi_backend import job
from musubi_backend.training import loop, output_lock, saved_states
from musubi_backend.weights.safetensors_file import load, read_header


@pytest.fixture
def begun(project: Any) -> Path:
    """A training of six steps with a falling rate and a state after the third and at the end."""
    project.train("first", "--save_state", max_train_steps=6, save_every_n_steps=3, lr_scheduler="linear")
    return project.folder / "out/first"


def rates(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A list that fills with the learning rate of every step that is trained from now on."""
    seen: list[float] = []
    original = loop.Loop._update

    def watched(self: loop.Loop, losses: list[float], used: int) -> None:
        seen.append(self.run.choice.optimizer.param_groups[0]["lr"])
        original(self, losses, used)

    monkeypatch.setattr(loop.Loop, "_update", watched)
    return seen


@pytest.mark.parametrize("other", ["RAdam", "SGD", "torch.optim.Adagrad"])
def test_another_optimizer_is_rejected_before_a_model_is_loaded(
    other: str, project: Any, begun: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert project.refused("second", resume=begun / "cat-step00000003-state", optimizer_type=other) == 1
    printed = capsys.readouterr()
    assert "--optimizer_type was adamw" in printed.err and f"is {other} now" in printed.err
    assert "Loading DiT" not in printed.err and "Traceback" not in printed.err


def test_a_state_that_does_not_say_its_optimizer_is_rejected_all_the_same(
    project: Any, begun: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One of musubi-tuner itself."""
    (begun / "cat-step00000003-state/training_state.json").unlink()
    capsys.readouterr()
    for other in ("SGD", "RAdam"):
        assert project.refused("second", resume=begun / "cat-step00000003-state", optimizer_type=other) == 1
        printed = capsys.readouterr().err
        assert "saved by another optimizer" in printed and "Traceback" not in printed


def test_another_spelling_of_the_same_optimizer_goes_on(project: Any, begun: Path, same: SimpleNamespace) -> None:
    settings = {"max_train_steps": 6, "lr_scheduler": "linear", "optimizer_type": "Adam_W"}
    project.train("second", resume=begun / "cat-step00000003-state", **settings)
    assert same.bits(project.lora("second"), project.lora("first"))


@pytest.mark.parametrize(
    ("name", "value", "kept"),
    [("learning_rate", "1e-3", "0.01"), ("optimizer_args", ["weight_decay=0.5"], "None"), ("network_alpha", 1, "2.0")],
)
def test_what_the_state_decides_is_kept_and_said(
    name: str, value: Any, kept: str, project: Any, begun: Path, same: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {"max_train_steps": 6, "lr_scheduler": "linear", name: value}
    capsys.readouterr()
    project.train("second", resume=begun / "cat-step00000003-state", **settings)
    said = capsys.readouterr().err
    assert f"--{name} {kept} of the state is kept" in said and "differs from an uninterrupted one" not in said
    assert same.bits(project.lora("second"), project.lora("first"))
    metadata = read_header(project.folder / "out/second/cat.safetensors").metadata
    assert metadata["ss_learning_rate"] == "0.01" and metadata["ss_network_alpha"] == "2.0"


def test_a_new_learning_rate_is_used_when_asked_for_and_stays(
    project: Any, begun: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = rates(monkeypatch)
    settings = {"max_train_steps": 6, "lr_scheduler": "linear"}
    new = {"resume": begun / "cat-step00000003-state", "resume_learning_rate": "1e-3", "save_every_n_steps": 4}
    out = project.train("second", "--save_state", **settings, **new)
    assert seen == pytest.approx([1e-3 * share for share in (3 / 6, 2 / 6, 1 / 6)])
    assert "was 0.01 and is 0.001 from here on" in capsys.readouterr().err
    assert read_header(out / "cat.safetensors").metadata["ss_learning_rate"] == "0.001"
    seen.clear()
    project.train("third", resume=out / "cat-step00000004-state", **{**settings, "learning_rate": "1e-3"})
    assert seen == pytest.approx([1e-3 * share for share in (2 / 6, 1 / 6)])
    assert "--learning_rate" not in capsys.readouterr().err


def test_a_new_learning_rate_needs_a_state(project: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert project.refused("second", resume_learning_rate="1e-3") == 1
    assert "--resume_learning_rate needs --resume" in capsys.readouterr().err


def test_more_steps_follow_the_longer_schedule_without_a_step_at_rate_0(
    project: Any, begun: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = rates(monkeypatch)
    project.train("second", resume=begun / "cat-state", max_train_steps=10, lr_scheduler="linear")
    assert seen == pytest.approx([1e-2 * share for share in (0.4, 0.3, 0.2, 0.1)])
    assert "on its way to 6 steps, this training is to have 10; from step 6 on" in capsys.readouterr().err


def test_another_schedule_is_the_commands(
    project: Any, begun: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = rates(monkeypatch)
    project.train("second", resume=begun / "cat-step00000003-state", max_train_steps=6, lr_scheduler="constant")
    assert seen == pytest.approx([1e-2] * 3)
    said = capsys.readouterr().err
    assert "--lr_scheduler was linear" in said and "the schedule of this command is used" in said


def test_a_schedule_class_of_ones_own_goes_on_or_begins_anew_at_the_same_step(
    project: Any, same: SimpleNamespace, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"max_train_steps": 6, "lr_scheduler_type": "StepLR", "save_every_n_steps": 3}
    out = project.train("first", "--save_state", lr_scheduler_args=["step_size=2", "gamma=0.5"], **settings)
    state = out / "cat-step00000003-state"
    project.train("second", resume=state, lr_scheduler_args=["step_size=2", "gamma=0.5"], **settings)
    assert same.bits(project.lora("second"), project.lora("first"))
    seen = rates(monkeypatch)
    project.train("third", resume=state, lr_scheduler_args=["step_size=1", "gamma=0.5"], **settings)
    assert seen == pytest.approx([1e-2 / 8, 1e-2 / 16, 1e-2 / 32])


@pytest.mark.parametrize(
    ("name", "value"), [("logit_mean", 0.5), ("mode_scale", 1.0), ("lr_scheduler_power", 2.0), ("lr_scheduler_num_cycles", 2)]
)
def test_all_that_changes_the_numbers_is_compared(
    name: str, value: float, project: Any, begun: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    project.train("second", resume=begun / "cat-step00000003-state", max_train_steps=4, **{"lr_scheduler": "linear", name: value})
    assert f"--{name} was" in capsys.readouterr().err


def test_what_cannot_change_them_is_not(project: Any, begun: Path, same: SimpleNamespace, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    flags = ("--gradient_checkpointing", "--save_state")
    settings = {"blocks_to_swap": 1, "training_comment": "hello", "max_data_loader_n_workers": 0, "save_every_n_steps": 2}
    project.train("second", *flags, resume=begun / "cat-step00000003-state", max_train_steps=6, lr_scheduler="linear", **settings)
    assert "when the state was saved" not in capsys.readouterr().err
    assert same.bits(project.lora("second"), project.lora("first"))


def test_another_model_file_is_reported_and_a_moved_one_is_not(
    project: Any, build: Any, begun: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    moved = project.folder / "elsewhere" / project.dit.name
    moved.parent.mkdir()
    moved.write_bytes(project.dit.read_bytes())
    settings = {"resume": begun / "cat-step00000003-state", "max_train_steps": 4, "lr_scheduler": "linear"}
    capsys.readouterr()
    project.train("second", dit=moved, **settings)
    assert "--dit was" not in capsys.readouterr().err
    other = moved.with_name("other.safetensors")
    moved.rename(other)
    project.train("third", dit=other, **settings)
    assert f"--dit was {project.dit.name}" in capsys.readouterr().err


def damage(file: Path) -> None:
    """Change one byte in the middle; the size stays."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0xFF
    file.write_bytes(content)


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.bin", "scheduler.bin", "training_state.json"])
def test_a_damaged_state_is_rejected_and_the_one_before_it_named(
    name: str, project: Any, begun: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = begun / "cat-step00000006-state" / name
    file.write_text("{") if name.endswith("json") else damage(file)
    capsys.readouterr()
    assert project.refused("second", resume=file.parent, max_train_steps=8, lr_scheduler="linear") == 1
    printed = capsys.readouterr().err
    assert "damaged" in printed and f"at step 6: --resume {begun / 'cat-state'}" in printed and "Loading DiT" not in printed


def test_the_furthest_state_counts_whatever_the_clock_says(begun: Path) -> None:
    for age, folder in enumerate(saved_states.of_run(begun, "cat")):
        os.utime(folder, (1_000_000 + age, 1_000_000 + age))
    assert [folder.name for folder in saved_states.of_run(begun, "cat")] == [
        "cat-step00000006-state", "cat-state", "cat-step00000003-state",
    ]  # fmt: skip
    (begun / "cat-state/optimizer.bin").write_bytes(b"")
    damage(begun / "cat-step00000006-state/model.safetensors")
    found, problems = saved_states.furthest_whole(saved_states.of_run(begun, "cat"))
    assert found is not None and found.step == 3
    assert len(problems) == 2 and "does not hold what was written" in problems[0] and "has 0 of" in problems[1]


def stop_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    original = loop.Loop._update

    def stopping(self: loop.Loop, losses: list[float], used: int) -> None:
        original(self, losses, used)
        if self.position.step == step:
            job.request_stop()

    monkeypatch.setattr(loop.Loop, "_update", stopping)


def test_stops_leave_one_state_and_one_lora(project: Any, same: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    out, settings = project.folder / "out/part", {"max_train_steps": 9, "save_every_n_steps": 6}

    def stop(step: int, **more: Any) -> set[str]:
        with monkeypatch.context() as patch:
            stop_at(step, patch)
            assert project.refused("part", "--save_state", **settings, **more) == 3
        job._stop.clear()
        return {path.name for path in out.iterdir() if "step" in path.name}

    def files(*steps: int) -> set[str]:
        return {f"cat-step{step:08d}{ending}" for step in steps for ending in ("-state", ".safetensors")}

    assert stop(2) == files(2)
    assert stop(4, resume=out / "cat-step00000002-state") == files(4)
    assert read_header(out / "cat-step00000004.safetensors").metadata["ss_saved_by_stop"] == "True"
    assert stop(7, resume=out / "cat-step00000004-state") == files(6, 7), "what is saved by itself stays"
    assert "ss_saved_by_stop" not in read_header(out / "cat-step00000006.safetensors").metadata
    project.train("part", "--save_state", **settings, resume=out / "cat-step00000007-state")
    assert {path.name for path in out.glob("*-state")} == {"cat-step00000006-state", "cat-state"}
    project.train("whole", **settings)
    assert same.bits(project.lora("part"), project.lora("whole"))


def test_the_stop_of_another_training_of_that_name_stays(project: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        stop_at(2, patch)
        project.refused("part", seed=1)
    job._stop.clear()
    project.train("part", "--save_state_on_train_end", max_train_steps=4)
    assert (project.folder / "out/part/cat-step00000002-state").is_dir()


def test_a_second_training_of_a_name_in_a_folder_is_rejected_by_name(project: Any, capsys: pytest.CaptureFixture[str]) -> None:
    other = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    out = project.folder / "out/first"
    out.mkdir(parents=True)
    lock = output_lock.lock_file(out, "cat")
    values = {"pid": other.pid, "created": psutil.Process(other.pid).create_time()}
    lock.write_text(json.dumps(values))
    try:
        assert project.refused("first", max_train_steps=1) == 1
        assert f"another training writes cat there (process {other.pid})" in capsys.readouterr().err
        project.train("first", max_train_steps=1, output_name="dog")
        lock.write_text(json.dumps({**values, "created": values["created"] - 100}))
        project.train("first", max_train_steps=1)  # the id belongs to another process by now
        lock.write_text(json.dumps(values))
    finally:
        other.communicate(b"\n")
    project.train("first", max_train_steps=1)
    assert not lock.exists() and not list(out.glob(".*"))


def test_an_unfinished_lock_counts_for_a_moment_only(tmp_path: Path) -> None:
    lock = output_lock.lock_file(tmp_path, "cat")
    lock.write_text("")
    assert output_lock.holder(lock) == 0
    os.utime(lock, (1_000_000, 1_000_000))
    assert output_lock.holder(lock) is None
    with output_lock.held(tmp_path, "cat"):
        assert output_lock.holder(lock) == os.getpid()
    assert not lock.exists()


def test_a_lora_to_begin_with_is_not_used_by_a_continued_training(project: Any, begun: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = {"resume": begun / "cat-step00000003-state", "max_train_steps": 6, "lr_scheduler": "linear"}
    capsys.readouterr()
    project.train("second", network_weights=begun / "cat.safetensors", **settings)
    assert "--network_weights are not used" in capsys.readouterr().err
    assert all(torch.equal(a, b) for a, b in zip(project.lora("second").values(), load(begun / "cat.safetensors").values(), strict=True))
