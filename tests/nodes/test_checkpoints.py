"""Which files of a folder are the checkpoints of one training, in which order, and which share of them is averaged."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest


def file(path: Path, **metadata: str) -> Path:
    """A LoRA of no tensors."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"__metadata__": metadata} if metadata else {}).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text)
    return path


@pytest.fixture
def host(part: Any, tmp_path: Path) -> Any:
    return part("headless.terminal").TerminalHost(tmp_path)


@pytest.fixture
def found(part: Any, host: Any) -> Any:
    """A function: labels of what is found under a name, oldest first."""
    return lambda text, run=None: [checkpoint.label for checkpoint in part("nodes.checkpoints").find(host, text, run)]


def test_the_commonest_name_and_its_last_file_are_the_training(found: Any, tmp_path: Path) -> None:
    folder = tmp_path / "loras"
    for number in (1, 2, 10):
        file(folder / f"cat-step{number:08d}.safetensors", ss_steps=str(number))
    file(folder / "cat.safetensors", ss_steps="12")
    file(folder / "dog-000001.safetensors")
    file(folder / "dog-000002.safetensors")
    file(folder / "dog.safetensors")
    file(folder / "cat-step00000011.safetensors", ss_steps="11", **{_of_stop(): "1"})
    assert found("loras") == ["1", "2", "10", "last"]


def test_steps_are_not_mixed_with_epochs(found: Any, tmp_path: Path) -> None:
    for number in (1, 2, 3):
        file(tmp_path / "loras" / f"cat-{number:06d}.safetensors", ss_epoch=str(number), ss_steps=str(10 * number))
    for number in (15, 25):
        file(tmp_path / "loras" / f"cat-step{number:08d}.safetensors", ss_steps=str(number))
    assert found("loras") == ["1", "2", "3"]


def test_the_newest_run_of_just_that_name_is_taken(found: Any, tmp_path: Path) -> None:
    for age, (name, last) in enumerate((("cat-0123", 2), ("cat-4567", 3), ("cat-nap-89ab", 4), ("cats-cdef", 5))):
        for number in range(1, last + 1):
            file(tmp_path / "runs" / name / f"cat-{number:06d}.safetensors", ss_epoch=str(number))
        os.utime(tmp_path / "runs" / name, (1000 + age, 1000 + age))
    assert found("cat") == ["1", "2", "3"]
    assert found("cat-nap") == ["1", "2", "3", "4"]
    assert found("", str(tmp_path / "runs" / "cat-0123")) == ["1", "2"]


def test_the_same_step_under_two_names_counts_once(found: Any, tmp_path: Path) -> None:
    for number in (1, 2):
        file(tmp_path / "loras" / f"cat-{number:06d}.safetensors", ss_epoch=str(number), ss_steps=str(10 * number), ss_session_id="7")
    file(tmp_path / "loras" / "cat.safetensors", ss_epoch="2", ss_steps="20", ss_session_id="7")
    assert len(found("loras")) == 2


def _of_stop() -> str:
    from musubi_backend.training.saved_states import OF_STOP

    return OF_STOP


@pytest.mark.parametrize(
    ("count", "first", "last", "kept"),
    [
        (5, 0.0, 1.0, [0, 1, 2, 3, 4]),
        (5, 0.5, 1.0, [2, 3, 4]),
        (5, 0.0, 0.25, [0, 1]),
        (30, 0.5, 5 / 6, list(range(14, 25))),
        (2, 0.0, 1.0, [0, 1]),
        (5, 1.0, 1.0, None),
        (5, 0.75, 0.5, None),
        (1, 0.0, 1.0, None),
    ],
)
def test_shares_of_a_training_are_counted_from_the_first_to_the_last(
    part: Any, count: int, first: float, last: float, kept: list[int] | None
) -> None:
    checkpoints = part("nodes.checkpoints")
    given = [checkpoints.Checkpoint(Path(f"{number}.safetensors"), number) for number in range(count)]
    if kept is None:
        with pytest.raises(part("backend.musubi_backend.errors").UserError, match=rf"leave \d of {count} checkpoints?; two or more"):
            checkpoints.between(given, first, last)
    else:
        assert [one.number for one in checkpoints.between(given, first, last)] == kept
