"""Old checkpoints go by musubi-tuner's rules; states are whole or not there; leftovers of a killed run are cleaned up."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from musubi_backend.architectures.wan.card import CARD
from musubi_backend.errors import UserError
from musubi_backend.training import saved_states, state
from musubi_backend.training.checkpoints import Checkpoints, Rotation, explained
from musubi_backend.training.saved_states import clean_leftovers
from musubi_backend.training.settings import TrainingSettings
from musubi_backend.weights.safetensors_file import load, read_header
from torch import nn


def writer(folder: Path, **changes: Any) -> Checkpoints:
    values: dict[str, Any] = {
        "output_dir": str(folder), "output_name": "cat", "save_precision": None, "save_every_n_steps": 2, "save_last_n_steps": None,
        "save_last_n_steps_state": None, "save_every_n_epochs": 1, "save_last_n_epochs": None, "save_last_n_epochs_state": None,
        "save_state": True, "no_metadata": True, "metadata_arch": None, "metadata_title": None, "metadata_reso": None,
        "metadata_author": None, "metadata_description": None, "metadata_license": None, "metadata_tags": None, "min_timestep": None,
        "max_timestep": None,
    }  # fmt: skip
    return Checkpoints(TrainingSettings.read({**values, **changes}), CARD, {})


def some_state(step: int = 1, run: str = "a") -> state.TrainingState:
    network = nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    network(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)
    position = saved_states.Position(step=step, batch=step)
    return state.TrainingState(network, optimizer, schedule, None, position, [0.5], [0.5], 7, {"architecture": "wan", "run": run})


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_steps_rotate_by_distance_and_epochs_by_count() -> None:
    steps = Rotation(every=10, last=30)
    assert [steps.step_to_remove(step) for step in (10, 30, 40, 50, 60)] == [None, None, None, 10, 20]
    assert Rotation(every=10, last=None).step_to_remove(50) is None
    epochs = Rotation(every=2, last=3)
    assert [epochs.epoch_to_remove(epoch) for epoch in (2, 6, 8, 10)] == [None, None, 2, 4]


def test_lora_files_and_states_rotate_apart(tmp_path: Path) -> None:
    files = writer(tmp_path, save_last_n_steps=2, save_last_n_steps_state=4)
    for step in (2, 4, 6, 8):
        files.save_lora(files.step_name(step), nn.Linear(2, 2), step, 0)
        files.save_state(files.step_name(step), some_state(step), f"at step {step}")
        files.rotate_steps(step)
    assert names(tmp_path) == {
        "cat-step00000006.safetensors", "cat-step00000008.safetensors",
        "cat-step00000004-state", "cat-step00000006-state", "cat-step00000008-state",
    }  # fmt: skip


def test_epochs_keep_the_last_n_files(tmp_path: Path) -> None:
    files = writer(tmp_path, save_last_n_epochs=2, save_last_n_epochs_state=1)
    for epoch in (1, 2, 3):
        files.save_lora(files.epoch_name(epoch), nn.Linear(2, 2), epoch, epoch)
        files.save_state(files.epoch_name(epoch), some_state(epoch), f"at epoch {epoch}")
        files.rotate_epochs(epoch)
    assert names(tmp_path) == {"cat-000002.safetensors", "cat-000003.safetensors", "cat-000003-state"}


def test_what_a_stop_left_goes_once_a_further_state_of_the_same_training_is_whole(tmp_path: Path) -> None:
    files = writer(tmp_path, save_every_n_steps=10, save_state=False)
    for step, run in ((3, "a"), (4, "another training"), (5, "a"), (10, "a")):  # a checkpoint is due at 10 only, and no state
        files.save_lora(files.step_name(step), nn.Linear(2, 2), step, 0)
        some = some_state(step, run)
        of_stop = step != 10
        some.facts["of_stop"] = {"lora": of_stop}
        some.save(files.state_folder(files.step_name(step)))
    marked = {path.name: read_header(path).metadata.get(saved_states.OF_STOP) for path in tmp_path.glob("*.safetensors")}
    stopped, due = (f"cat-step{step:08d}" for step in (5, 10))
    assert marked[f"{stopped}.safetensors"] == "True" and marked[f"{due}.safetensors"] is None
    files.save_state("cat-000001", some_state(5), "at epoch 1")
    assert names(tmp_path) == {
        "cat-step00000004.safetensors", "cat-step00000004-state", f"{stopped}.safetensors", f"{stopped}-state",
        f"{due}.safetensors", f"{due}-state", "cat-000001-state",
    }  # fmt: skip
    files.save_state("cat", some_state(12), "(last)")
    assert names(tmp_path) == {
        "cat-step00000004.safetensors", "cat-step00000004-state", f"{due}.safetensors", "cat-000001-state", "cat-state",
    }  # fmt: skip


def test_a_stops_state_says_whether_its_lora_is_a_checkpoint(tmp_path: Path) -> None:
    files = writer(tmp_path, save_every_n_steps=10, save_state=False)
    for step in (5, 10):
        files.save_state(files.step_name(step), some_state(step), "")
    kept = saved_states.read(tmp_path / "cat-step00000010-state")
    assert kept.facts["of_stop"] == {"lora": False} and not (tmp_path / "cat-step00000005-state").exists()


@pytest.mark.parametrize(
    ("precision", "dtype"), [(None, torch.float32), ("fp16", torch.float16), ("bf16", torch.bfloat16), ("float", torch.float32)]
)
def test_save_precision(precision: str | None, dtype: torch.dtype, tmp_path: Path) -> None:
    (path,) = writer(tmp_path, save_precision=precision).save_lora("cat", nn.Linear(2, 2), 1, 1)
    assert {tensor.dtype for tensor in load(path).values()} == {dtype}


def test_a_state_that_cannot_be_finished_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "cat-state"
    some_state(1).save(folder)

    def disk_full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(state, "_save_pickle", disk_full)
    with pytest.raises(UserError, match=r"disk is full.*Earlier checkpoints are untouched"), explained(folder):
        some_state(2).save(folder)
    assert names(tmp_path) == {"cat-state"}
    saved = saved_states.read(folder)
    assert saved.position is not None and saved.position.step == 1


def test_saving_over_a_state_replaces_it_whole(tmp_path: Path) -> None:
    folder = tmp_path / "cat-state"
    some_state(1).save(folder)
    some_state(2).save(folder)
    assert names(tmp_path) == {"cat-state"}
    saved = saved_states.read(folder)
    assert saved.position == saved_states.Position(step=2, batch=2) and saved.losses == [0.5] and saved.seed == 7


def test_a_kill_while_an_old_state_is_removed_leaves_no_half_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = writer(tmp_path, save_last_n_steps=2)
    files.save_state(files.step_name(2), some_state(2), "at step 2")

    def killed(folder: Path) -> None:
        (folder / saved_states.POSITION_FILE).unlink()
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        files.rotate_steps(5)
    monkeypatch.undo()
    assert not list(tmp_path.glob("cat*"))
    clean_leftovers(tmp_path, "cat")
    assert names(tmp_path) == set()


def test_leftovers_of_a_killed_run_are_cleaned_and_nobody_elses(tmp_path: Path) -> None:
    (tmp_path / ".cat-000001.safetensors.0123abcd.part").write_bytes(b"half")
    (tmp_path / ".cat-step00000002-state.0123abcd.part").mkdir()
    some_state(5).save(tmp_path / "was")
    (tmp_path / "was").rename(tmp_path / ".cat-state.0123abcd.old")
    others = {".catalogue.safetensors.0123abcd.part", ".cat-notes.txt.0123abcd.part", "cat.safetensors"}
    for name in others:
        (tmp_path / name).write_bytes(b"")
    clean_leftovers(tmp_path, "cat")
    assert names(tmp_path) == {*others, "cat-state"}
    saved = saved_states.read(tmp_path / "cat-state")
    assert saved.position is not None and saved.position.step == 5


def test_restoring_gives_back_weights_and_optimizer(tmp_path: Path) -> None:
    original, fresh = some_state(3), some_state(3)
    original.save(tmp_path / "cat-state")
    fresh.restore(saved_states.read(tmp_path / "cat-state"))
    for ours, theirs in zip(fresh.network.parameters(), original.network.parameters(), strict=True):
        assert torch.equal(ours, theirs)
        a, b = fresh.optimizer.state[ours], original.optimizer.state[theirs]
        assert torch.equal(a["exp_avg"], b["exp_avg"]) and torch.equal(a["exp_avg_sq"], b["exp_avg_sq"])


def test_what_is_no_state_is_named(tmp_path: Path) -> None:
    some_state().save(tmp_path / "cat-000001-state")
    with pytest.raises(UserError, match="cat-000001-state"):
        saved_states.read(tmp_path / "cat-000002-state")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"model.safetensors is missing"):
        saved_states.read(tmp_path / "empty")
    broken = tmp_path / "cat-000001-state" / saved_states.POSITION_FILE
    broken.write_text(broken.read_text()[:40])
    with pytest.raises(UserError, match=r"training_state.json is damaged"):
        saved_states.read(tmp_path / "cat-000001-state")


def test_a_state_of_other_parts_is_rejected_in_words(tmp_path: Path) -> None:
    some_state().save(tmp_path / "cat-state")
    other = some_state()
    other.network = nn.Linear(3, 3)
    with pytest.raises(UserError, match="does not fit this training"):
        other.restore(saved_states.read(tmp_path / "cat-state"))


def test_an_old_checkpoint_that_cannot_be_removed_is_in_nobodys_way(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As on Windows while a program has it open."""
    files = writer(tmp_path, save_every_n_steps=1, save_last_n_steps=1)
    (tmp_path / f"{files.step_name(1)}.safetensors" / "in the way").mkdir(parents=True)
    files.rotate_steps(3)
    assert "the old checkpoint could not be removed: " in caplog.text and f"{files.step_name(1)}.safetensors" in caplog.text
