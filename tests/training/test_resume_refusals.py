"""Each reason why a state is rejected, one by one, from what its position file says."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import pytest
from musubi_backend.errors import UserError
from musubi_backend.training import saved_states
from musubi_backend.training.saved_states import DamagedState


def state(folder: Path, **changes: Any) -> Path:
    folder.mkdir()
    (folder / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    (folder / "optimizer.bin").write_bytes(b"moments")
    said = {"format": 1, "step": 3, "epoch": 1, "batch": 2, "micro_step": 3, "seed": 1, "losses": [0.5], "history": [0.25]}
    said |= {"files": {"optimizer.bin": {"size": 7, "crc32": zlib.crc32(b"moments")}}, **changes}
    text = json.dumps({key: value for key, value in said.items() if value is not ...})
    (folder / "training_state.json").write_text(text, encoding="utf-8")
    return folder


def test_a_whole_state_is_read(tmp_path: Path) -> None:
    saved = saved_states.read(state(tmp_path / "cat-state"), whole=True)
    assert saved.position is not None and (saved.position.step, saved.position.epoch, saved.position.batch) == (3, 1, 2)
    assert (saved.seed, saved.losses, saved.history) == (1, [0.5], [0.25])


@pytest.mark.parametrize("key", ["format", "step", "epoch", "batch", "micro_step", "seed", "losses", "history"])
@pytest.mark.parametrize("value", [..., None, "3", [1], {"a": 1}])
def test_a_position_that_says_something_else_is_damaged(tmp_path: Path, key: str, value: Any) -> None:
    if key in ("losses", "history") and value == [1]:
        value = ["x"]
    with pytest.raises(DamagedState, match=r"training_state.json is damaged"):
        saved_states.read(state(tmp_path / "cat-state", **{key: value}))


@pytest.mark.parametrize("key", ["step", "epoch", "batch", "micro_step"])
@pytest.mark.parametrize("value", [-1, 1.5, True])
def test_numbers_of_a_position_are_whole_and_not_negative(tmp_path: Path, key: str, value: Any) -> None:
    with pytest.raises(DamagedState, match="is damaged"):
        saved_states.read(state(tmp_path / "cat-state", **{key: value}))


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"../optimizer.bin": {"size": 7, "crc32": 1}}, "no file of this folder"),
        ({"optimizer.bin": {"size": 8, "crc32": 1}}, "has 7 of 8 bytes"),
        ({"optimizer.bin": {"size": 7}}, "crc32"),
        ({"gone.bin": {"size": 7, "crc32": 1}}, "gone.bin"),
    ],
)
def test_files_that_are_not_as_they_were_written(tmp_path: Path, files: dict[str, Any], words: str) -> None:
    with pytest.raises(DamagedState, match=words):
        saved_states.read(state(tmp_path / "cat-state", files=files))


def test_other_contents_of_the_same_size_are_found_when_the_whole_is_read(tmp_path: Path) -> None:
    folder = state(tmp_path / "cat-state")
    (folder / "optimizer.bin").write_bytes(b"MOMENTS")
    assert saved_states.read(folder).position is not None
    with pytest.raises(DamagedState, match=r"optimizer\.bin"):
        saved_states.read(folder, whole=True)


def test_a_state_of_a_newer_program_is_no_damage(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"newer version of this program \(format 99\)") as refused:
        saved_states.read(state(tmp_path / "cat-state", format=99))
    assert not isinstance(refused.value, DamagedState)


@pytest.mark.parametrize("missing", ["model.safetensors", "optimizer.bin"])
def test_a_folder_without_its_files_is_no_state(tmp_path: Path, missing: str) -> None:
    folder = state(tmp_path / "cat-state")
    (folder / missing).unlink()
    with pytest.raises(DamagedState, match=f"{missing} is missing"):
        saved_states.read(folder)


def test_a_folder_that_is_not_there_names_its_neighbours(tmp_path: Path) -> None:
    state(tmp_path / "cat-state")
    with pytest.raises(UserError, match="does not exist; states there: cat-state"):
        saved_states.read(tmp_path / "dog-state")
