"""Which clip stays bad: the losses of each item come into the events, and from there into the history of the job and the report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from musubi_backend import events, job
from musubi_backend.training import due
from musubi_backend.training.item_losses import MOST, ItemLosses


def test_what_was_trained_is_told_by_item_once_in_enough_steps_and_at_the_end(
    project: Any, part: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job, "watch_for_stop", lambda: None)  # stdin is pytest's
    monkeypatch.setenv(job.JOB_DIR_VARIABLE, str(tmp_path))
    monkeypatch.setattr(due, "_STEPS_OF_ITEMS", 5)
    project.train("items", max_train_steps=10)  # epochs of 4: the last is cut short
    log = events.read(tmp_path / events.FILE_NAME)
    told, steps = ([one for one in log if isinstance(one, kind)] for kind in (events.Items, events.Step))
    assert [one.step for one in told] == [8, 10]
    assert sum(sum(one.counts) for one in told) == 10, "each step counts once"
    total = sum(loss * count for one in told for loss, count in zip(one.losses, one.counts, strict=True))
    assert total == pytest.approx(sum(step.loss for step in steps))
    assert all(list(one.losses) == sorted(one.losses, reverse=True) for one in told)
    history = part("nodes.jobs.history").History(part("nodes.jobs.folder").JobFolder(tmp_path))
    history.read_on()
    assert set(history.items) == {name for one in told for name in one.names} and len(history.items) > 1


def test_an_item_counts_with_the_mean_of_its_batches_and_only_the_hardest_are_told() -> None:
    losses = ItemLosses()
    for names, loss in ((["a", "b"], 1.0), (["a"], 3.0), (["c"], 0.5)):
        losses.add(names, loss)
    assert losses.take(7) == events.Items(7, ("a", "b", "c"), (2.0, 1.0, 0.5), (2.0, 1.0, 1.0))
    assert losses.take(8) == events.Items(8)
    losses.add((str(number) for number in range(MOST + 1)), 1.0)
    losses.add(["1"], 9.0)
    told = losses.take(9)
    assert told.names[0] == "1" and len(told.names) == MOST


def test_what_is_older_counts_less_and_processes_tell_of_their_own(part: Any, tmp_path: Path) -> None:
    again, of_other = events.Items(2, ("a",), (1.0,), (1.0,)), events.Items(2, ("c",), (3.0,), (1.0,))
    said = [(events.Items(1, ("a", "b"), (4.0, 1.0), (2.0, 2.0)), 0), (again, 0), (of_other, 1)]
    lines = [events.line_of(event, time=1.0, clock=1.0, rank=rank) for event, rank in said]
    odd = events.line_of(events.Items(3, ("d",), (1.0,), (1.0,)), time=1.0, clock=1.0, rank=0).replace("1.0]", '"x"]')
    (tmp_path / events.FILE_NAME).write_text("".join([*lines, odd]))
    history = part("nodes.jobs.history").History(part("nodes.jobs.folder").JobFolder(tmp_path))
    history.read_on()
    assert history.items == {"a": (pytest.approx(2.5), 2.0), "b": (1.0, 2.0), "c": (3.0, 1.0)}
