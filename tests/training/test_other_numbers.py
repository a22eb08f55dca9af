"""A state continues with another number of processes, whole or spread: with the batches of the epoch that are left, in the same order."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace

import group
import pytest
import torch
from musubi_backend.training.course import Course, plan
from musubi_backend.training.distributed import share
from musubi_backend.training.progress import AverageLoss
from musubi_backend.training.saved_states import Position
from musubi_backend.training.settings import LengthSettings

SPREAD = ("--fsdp", "--gradient_checkpointing")
CLIPS = 7
LENGTH = {"max_train_steps": None, "max_train_epochs": 3, "lr_scheduler": "cosine", "save_every_n_epochs": 1}
"""An epoch is 7 steps of one process, 4 of two, 3 of three; the last of these fill up with items that come again."""


def test_what_is_left_of_an_epoch_is_shared_by_any_number_without_leaving_one_out_or_taking_it_twice() -> None:
    items = list(range(12))
    for done in range(13):
        for count in (1, 2, 3, 5):
            shares = [share(items, rank, count, done) for rank in range(count)]
            assert len({len(one) for one in shares}) == 1
            together = [item for row in zip(*shares, strict=True) for item in row]
            assert together[: 12 - done] == items[done:] and len(together) < 12 - done + count


@pytest.mark.parametrize(
    ("begin", "processes", "accumulated", "epochs", "course"),
    [
        (Position(), 1, 1, 3, Course(21, 3)),
        (Position(), 2, 1, 3, Course(12, 3)),
        (Position(9, 1, 2, 9), 1, 1, 3, Course(21, 3)),  # as it was
        (Position(9, 1, 2, 9), 2, 1, 3, Course(9 + 3 + 4, 3)),
        (Position(9, 1, 2, 9), 2, 2, 3, Course(9 + 2 + 2, 3)),
        (Position(6, 1, 4, 6), 1, 1, 3, Course(6 + 3 + 7, 3)),
        (Position(4, 0, 8, 4), 3, 1, 3, Course(4 + 0 + 3 + 3, 3)),  # the end of an epoch of two processes
        (Position(21, 3, 0, 21), 2, 1, 3, Course(21, 3)),
        (Position(28, 4, 0, 28), 2, 1, 3, Course(28, 3)),
        (Position(), 1, 1, None, Course(20, 3)),
        (Position(), 2, 1, None, Course(20, 5)),
        (Position(9, 1, 2, 9), 2, 1, None, Course(20, 2 + 2)),  # 3 steps of epoch 2, 4 and 4
        (Position(20, 2, 6, 20), 2, 1, None, Course(20, 3)),
    ],
)
def test_a_training_ends_with_its_epochs_or_steps_wherever_it_begins(
    begin: Position, processes: int, accumulated: int, epochs: int | None, course: Course
) -> None:
    assert plan(begin, 7, processes, LengthSettings(20, epochs, accumulated)) == course


def test_the_average_is_of_losses_only_where_the_places_before_are_not_known() -> None:
    average = AverageLoss([2.0, 4.0])
    average.add(5, 6.0)
    assert average.value == 4.0 and average.losses == [2.0, 4.0, 6.0]
    average.add(0, 8.0)
    assert average.value == 6.0


@pytest.fixture(scope="module")
def numbers(
    model_and_caches: tuple[Path, Path], build: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> group.Group:
    """NAME is a training of so many processes, "A to B" goes on from the state of A in the middle of its second epoch."""
    pytest.importorskip("accelerate")
    folder = tmp_path_factory.mktemp("other numbers")
    project = build.project(folder, model_and_caches[0], build.caches(folder, clips=CLIPS))
    full = request.config.getoption("--full")
    scenes = [
        group.scene(project, name, "--save_state", *flags, **LENGTH, save_every_n_steps=1, count=count)
        for name, count, flags in (("1", 1, ()), ("2", 2, ()), ("2 spread", 2, SPREAD), ("3", 3, ()))
        if count < 3 or full
    ]
    for change in (*CHANGES, *(OTHERS if full else ())):
        was, now = change.split(" to ")
        state = folder / "out" / was / f"cat-step{STEPS[was]:08d}-state"
        spread = SPREAD if "spread" in now else ()
        scenes.append(group.scene(project, change, "--save_state", *spread, **LENGTH, resume=state, count=int(now[0])))
    return group.played(project, folder, scenes, 3 if full else 2)


CHANGES = ("1 to 2 spread", "2 spread to 1")
OTHERS = ("1 to 2", "2 to 1", "2 to 3", "3 to 2", "2 spread to 2", "2 to 2 spread", "3 to 1")
STEPS = {"1": 10, "2": 6, "2 spread": 6, "3": 4}
"""In the second epoch, of which 3, 4, 4 and 3 items are done."""
DONE = {"1": 3, "2": 4, "2 spread": 4, "3": 3}
ALL = [*CHANGES, *(pytest.param(change, marks=pytest.mark.full(reason="starts three processes, for other numbers")) for change in OTHERS)]


@pytest.mark.slow
@pytest.mark.parametrize("change", ALL)
def test_another_number_goes_on_with_what_is_left_of_the_epoch(change: str, numbers: group.Group) -> None:
    was, now = change.split(" to ")
    assert set(numbers.results[change]) == {0}, numbers.texts[change][0]
    alone, after = _items(numbers, "1"), _items(numbers, change)
    before, order = _items(numbers, was, STEPS[was]), [alone[epoch * CLIPS : (epoch + 1) * CLIPS] for epoch in range(3)]
    count = int(now[0])
    second = before[-DONE[was] :] + after[: CLIPS - DONE[was]]
    assert second == order[1], "every item of the epoch once, in its order"
    padded = -(CLIPS - DONE[was]) % count
    third = after[CLIPS - DONE[was] + padded :]
    assert third[:CLIPS] == order[2] and len(third) == CLIPS + -CLIPS % count, "and then the next epoch, to its end"


@pytest.mark.slow
@pytest.mark.parametrize("change", ALL)
def test_another_number_goes_on_with_optimizer_and_rate_and_ends_with_the_epochs(change: str, numbers: group.Group) -> None:
    was, now = change.split(" to ")
    steps = len(numbers.learned(change))
    total = STEPS[was] + steps
    state = torch.load(numbers.project.folder / "out" / change / "cat-000002-state/optimizer.bin", weights_only=True)
    at = STEPS[was] + -(-(CLIPS - DONE[was]) // int(now[0]))
    assert {float(one["step"]) for one in state["state"].values()} == {float(at)}, "moments that were begun anew would count from 0"
    assert state["param_groups"][0]["lr"] == pytest.approx(1e-2 * (1 + math.cos(math.pi * at / total)) / 2)
    names = {path.name for path in (numbers.project.folder / "out" / change).glob("*.safetensors")}
    assert names == {"cat-000002.safetensors", "cat.safetensors"}
    if was[0] != now[0]:
        said = f"the number of processes was {was[0]} when the state was saved and is {now[0]} now; they continue with the batches that are"
        assert said in numbers.texts[change][0]
        assert "on its way to" in numbers.texts[change][0]


def _items(numbers: group.Group, name: str, steps: int | None = None) -> list[str]:
    """In the order in which they were learned from, in the first steps."""
    return [item for step in numbers.learned(name)[:steps] for item in step]
