"""Training runs: finished ones are found again while their file is intact, resumed ones keep one curve, no LoRA is ever replaced."""

from __future__ import annotations

import json
import os
import zlib
from pathlib import Path
from typing import Any

import pytest

KEY = "0123"


@pytest.fixture
def run(part: Any, tmp_path: Path) -> Any:
    made = part("nodes.runs").Run(tmp_path / "猫-0123", "猫")
    made.path.mkdir()
    return made


def test_a_finished_run_counts_while_its_lora_is_the_one_it_wrote(run: Any) -> None:
    assert run.finished(KEY) is None
    run.lora.write_bytes(b"weights")
    assert run.finished(KEY) is None, "a file alone is no finished run"
    run.finish(KEY, "job")
    assert run.finished(KEY)["job"] == "job"
    run.results(KEY)[0].write_bytes(b"other weights")
    assert run.finished(KEY) is None


def test_a_run_keeps_the_lora_of_every_length(run: Any) -> None:
    for key in ("100 steps", "200 steps"):
        run.lora.unlink(missing_ok=True)
        run.lora.write_text(key)
        run.finish(key, f"job of {key}")
    for key in ("100 steps", "200 steps"):
        assert run.results(key)[0].read_text() == key
        assert run.finished(key)["job"] == f"job of {key}"


def test_a_run_of_two_loras_is_finished_while_both_are_there(part: Any, tmp_path: Path) -> None:
    run = part("nodes.runs").Run(tmp_path / "both-0123", "both", ("-low", "-high"))
    run.path.mkdir()
    for lora in run.loras:
        lora.write_bytes(b"weights")
    run.finish(KEY, "job")
    assert run.finished(KEY)["job"] == "job"
    assert [lora.name for lora in run.results(KEY)] == ["both-low.safetensors", "both-high.safetensors"]
    run.results(KEY)[1].unlink()
    assert run.finished(KEY) is None


def test_a_resumed_run_keeps_one_curve(run: Any) -> None:
    run.add_losses({1: 3.0, 2: 2.0})
    assert run.add_losses({2: 2.5, 10: 1.0}) == [3.0, 2.5, 1.0]
    assert run.losses() == [3.0, 2.5, 1.0]


def test_damaged_notes_lose_nothing_but_the_shortcut(run: Any) -> None:
    run.add_losses({1: 3.0})
    (run.path / "run.json").write_text('{"losses"')
    assert run.losses() == [] and run.finished(KEY) is None
    run.add_losses({2: 1.0})
    assert run.losses() == [1.0]


def state(run: Any, name: str, step: int, epoch: int = 0, batch: int = 0) -> Path:
    """A folder like a state's, with a LoRA of no tensors."""
    folder: Path = run.path / name
    folder.mkdir()
    (folder / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    (folder / "optimizer.bin").write_bytes(b"moments")
    place = {"format": 1, "step": step, "epoch": epoch, "batch": batch, "micro_step": step, "seed": 1, "losses": [], "history": []}
    (folder / "training_state.json").write_text(
        json.dumps({**place, "files": {"optimizer.bin": {"size": 7, "crc32": zlib.crc32(b"moments")}}})
    )
    return folder


def test_the_state_to_continue_is_the_furthest_not_the_last_written(run: Any) -> None:
    assert run.state_to_continue({}) == (None, [])
    for age, (name, step) in enumerate((("猫-step00000030-state", 30), ("猫-000002-state", 20), ("猫-state", 10))):
        os.utime(state(run, name, step), (1000 + age, 1000 + age))
    (run.path / "file-state").write_text("no folder")
    assert run.state_to_continue({"max_train_steps": 100})[0].folder.name == "猫-step00000030-state"
    assert run.state_to_continue({"max_train_steps": 25})[0].step == 20, "one that is too far is left"


def test_by_epochs_a_state_counts_by_its_epoch(run: Any) -> None:
    state(run, "猫-000002-state", 20, epoch=2)
    state(run, "猫-000004-state", 40, epoch=4)
    assert run.state_to_continue({"max_train_epochs": 3})[0].step == 20
    assert run.state_to_continue({"max_train_epochs": 4})[0].step == 40
    state(run, "猫-step00000043-state", 43, epoch=4, batch=3)
    assert run.state_to_continue({"max_train_epochs": 4})[0].step == 40, "the fifth epoch has begun in it"
    assert run.state_to_continue({"max_train_epochs": 5})[0].step == 43


def test_a_damaged_state_is_passed_over_and_said(run: Any) -> None:
    state(run, "猫-step00000010-state", 10)
    (state(run, "猫-step00000020-state", 20) / "optimizer.bin").write_bytes(b"mom")
    found, problems = run.state_to_continue({})
    assert found.step == 10
    assert len(problems) == 1 and "猫-step00000020-state is damaged: optimizer.bin has 3 of 7 bytes" in problems[0]


def test_a_state_that_was_being_replaced_when_the_power_went_is_put_back(run: Any) -> None:
    state(run, ".猫-state.0123abcd.old", 10)
    assert run.state_to_continue({})[0].folder == run.path / "猫-state"


def test_what_a_running_training_is_replacing_is_left_to_it(part: Any, run: Any) -> None:
    former = state(run, ".猫-state.0123abcd.old", 10)
    with part("backend.musubi_backend.training.output_lock").held(run.path, run.name):
        run.state_to_continue({})
        assert former.is_dir() and not (run.path / "猫-state").exists()


def test_a_published_lora_is_never_replaced(run: Any, part: Any, tmp_path: Path) -> None:
    publish = part("nodes.publishing").publish
    run.lora.write_bytes(b"weights")
    name, path, said = publish(run.lora, tmp_path / "loras", "猫")
    assert Path(name) == Path("musubi_tuner/猫.safetensors") and said == ""
    before = path.stat().st_mtime_ns
    assert publish(run.lora, tmp_path / "loras", "猫") == (name, path, "")
    assert path.stat().st_mtime_ns == before
    run.lora.write_bytes(b"WEIGHTS")
    second, other, said = publish(run.lora, tmp_path / "loras", "猫")
    assert path.read_bytes() == b"weights" and other.read_bytes() == b"WEIGHTS" and other.name.startswith("猫-")
    assert second != name and "猫.safetensors is another file, or in use, and was left as it is" in said and other.name in said
    assert publish(run.lora, tmp_path / "loras", "猫")[1] == other, "the same again has the same name"
    assert sorted(entry.name for entry in path.parent.iterdir()) == sorted([path.name, other.name]), "no partial file is left"


def test_a_name_that_cannot_be_written_gets_another(run: Any, part: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on Windows while a program has the file mapped."""
    publishing = part("nodes.publishing")
    monkeypatch.setattr(publishing.durations, "FILE_IN_USE", 0)
    replace, tries = Path.replace, []

    def denied(self: Path, target: Path) -> Path:
        if Path(target).name == "猫.safetensors":
            tries.append(target)
            raise PermissionError(13, "used by another process")
        return replace(self, target)

    def no_links(*_: Any) -> None:
        raise PermissionError(1, "Operation not permitted")  # as of FAT

    monkeypatch.setattr(Path, "replace", denied)
    monkeypatch.setattr(os, "link", no_links)
    run.lora.write_bytes(b"weights")
    _, path, said = publishing.publish(run.lora, tmp_path / "loras", "猫")
    assert len(tries) == publishing._TRIES and path.read_bytes() == b"weights" and path.name in said
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]
