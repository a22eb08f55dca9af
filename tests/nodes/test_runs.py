"""Training runs: finished ones are found again while their file is intact, resumed ones keep one curve, LoRAs are published whole."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def run(part: Any, tmp_path: Path) -> Any:
    made = part("nodes.runs").Run(tmp_path / "猫-0123", "猫")
    made.path.mkdir()
    return made


def test_a_finished_run_counts_while_its_lora_is_the_one_it_wrote(run: Any) -> None:
    assert run.finished() is None
    run.lora.write_bytes(b"weights")
    assert run.finished() is None, "a file alone is no finished run"
    run.finish("job")
    assert run.finished()["job"] == "job"
    run.lora.write_bytes(b"other weights")
    assert run.finished() is None


def test_a_run_of_two_loras_is_finished_while_both_are_there(part: Any, tmp_path: Path) -> None:
    run = part("nodes.runs").Run(tmp_path / "both-0123", "both", ("-low", "-high"))
    run.path.mkdir()
    for lora in run.loras:
        lora.write_bytes(b"weights")
    run.finish("job")
    assert run.finished()["job"] == "job"
    assert [lora.name for lora in run.loras] == ["both-low.safetensors", "both-high.safetensors"]
    run.loras[1].unlink()
    assert run.finished() is None


def test_a_resumed_run_keeps_one_curve(run: Any) -> None:
    run.add_losses({1: 3.0, 2: 2.0})
    assert run.add_losses({2: 2.5, 10: 1.0}) == [3.0, 2.5, 1.0]
    assert run.losses() == [3.0, 2.5, 1.0]


def test_damaged_notes_lose_nothing_but_the_shortcut(run: Any) -> None:
    run.add_losses({1: 3.0})
    (run.path / "run.json").write_text('{"losses"')
    assert run.losses() == [] and run.finished() is None
    run.add_losses({2: 1.0})
    assert run.losses() == [1.0]


def test_the_newest_state_is_the_one_written_last(run: Any) -> None:
    assert run.newest_state() is None
    for age, name in ((30, "猫-step00000010-state"), (10, "猫-000002-state"), (20, "猫-step00000020-state")):
        (run.path / name).mkdir()
        os.utime(run.path / name, (1000 - age, 1000 - age))
    (run.path / "file-state").write_text("no folder")
    assert run.newest_state().name == "猫-000002-state"


def test_publishing_replaces_other_contents_and_leaves_equal_ones(run: Any, part: Any, tmp_path: Path) -> None:
    publish = part("nodes.runs").publish
    run.lora.write_bytes(b"weights")
    name, path, replaced = publish(run.lora, tmp_path / "loras", "猫")
    assert Path(name) == Path("musubi_tuner/猫.safetensors")
    assert not replaced
    before = path.stat().st_mtime_ns
    assert not publish(run.lora, tmp_path / "loras", "猫")[2]
    assert path.stat().st_mtime_ns == before
    run.lora.write_bytes(b"WEIGHTS")
    assert publish(run.lora, tmp_path / "loras", "猫")[2]
    assert path.read_bytes() == b"WEIGHTS"
    assert [entry.name for entry in path.parent.iterdir()] == [path.name], "no partial file is left"
