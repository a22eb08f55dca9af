"""Which states there are, how far and whole each is, and whether what one holds fits: without a training."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from musubi_backend.errors import UserError
from musubi_backend.training import saved_states, state
from musubi_backend.training.lean_torch import leave_compiler_out
from musubi_backend.training.saved_states import DamagedState, Position
from musubi_backend.training.state_fit import OptimizerForm, check_kind, check_same_optimizer, check_schedule
from torch import nn

LAMBDA = torch.optim.lr_scheduler.LambdaLR


def live(total: int = 10, kind: Any = torch.optim.AdamW) -> state.TrainingState:
    leave_compiler_out()
    network = nn.Linear(3, 2)
    optimizer = kind(network.parameters(), lr=0.1)
    network(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    return state.TrainingState(
        network,
        optimizer,
        LAMBDA(optimizer, lambda step: 1 - step / total),
        None,
        Position(),
        [0.5],
        [0.25, 0.75],
        7,
        {"settings": {"a": 1}},
    )


def saved(folder: Path, step: int) -> Path:
    one = live()
    one.position = Position(step=step, batch=step)
    one.save(folder)
    return folder


def edit(folder: Path, **values: Any) -> None:
    path = folder / saved_states.POSITION_FILE
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


# --- folders


def test_states_are_ordered_by_their_steps_and_only_those_of_the_name_count(tmp_path: Path) -> None:
    """Names would order them otherwise. Of a state that cannot be read the name counts, and without a number it comes first."""
    for name, step in (("cat-000001", 30), ("cat-000002", 10), ("cat-step00000020", 20), ("cat", 25), ("cat-2", 99), ("catalogue", 99)):
        saved(tmp_path / f"{name}-state", step)
    (tmp_path / "cat-step00000022-state").mkdir()
    (tmp_path / "cat-step00000015-state.safetensors").write_bytes(b"")
    found = [path.name.removesuffix("-state") for path in saved_states.of_run(tmp_path, "cat")]
    assert found == ["cat-000001", "cat", "cat-step00000022", "cat-step00000020", "cat-000002"]
    (tmp_path / "cat-state" / saved_states.POSITION_FILE).write_text("{")
    assert saved_states.of_run(tmp_path, "cat")[0].name == "cat-state"
    before = saved_states.before(tmp_path / "cat-000001-state")
    assert before is not None and before.folder.name == "cat-step00000020-state", "damaged ones are passed over"
    assert saved_states.before(tmp_path / "cat-000002-state") is None


@pytest.mark.parametrize(
    ("name", "run"), [("cat-state", "cat"), ("cat-000003-state", "cat"), ("cat-step00000003-state", "cat"), ("cat-3-state", "cat-3")]
)
def test_the_name_of_the_training_is_what_stands_before_the_number(name: str, run: str) -> None:
    assert saved_states.run_name(Path(name)) == run


def test_checksums_are_those_of_whole_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saved_states, "_PIECE", 4)
    (tmp_path / "file").write_bytes(b"more than one piece")
    assert saved_states.contents(tmp_path) == {"file": {"size": 19, "crc32": zlib.crc32(b"more than one piece")}}


@pytest.mark.parametrize("change", [lambda data: data + b"x", lambda data: data[:-1]])
def test_a_file_of_another_size_is_damage_at_first_sight(change: Callable[[bytes], bytes], tmp_path: Path) -> None:
    path = saved(tmp_path / "cat-state", 1) / saved_states.OPTIMIZER_FILE
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(DamagedState, match=r"optimizer\.bin has \d+ of \d+ bytes"):
        saved_states.read(tmp_path / "cat-state")


def test_other_contents_of_the_same_size_are_found_where_all_is_read(tmp_path: Path) -> None:
    path = saved(tmp_path / "cat-state", 1) / saved_states.OPTIMIZER_FILE
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    assert saved_states.read(tmp_path / "cat-state").step == 1
    with pytest.raises(DamagedState, match="does not hold what was written"):
        saved_states.read(tmp_path / "cat-state", whole=True)


def test_states_of_this_format_are_read_and_newer_ones_rejected(tmp_path: Path) -> None:
    folder = saved(tmp_path / "cat-state", 1)
    read = saved_states.read(folder)
    assert (read.losses, read.history, read.seed) == ([0.5], [0.25, 0.75], 7)
    edit(folder, format=saved_states.FORMAT + 1)
    with pytest.raises(UserError, match="newer version"):
        saved_states.read(folder)


def test_a_state_that_was_replaced_comes_back_only_where_none_took_its_place(tmp_path: Path) -> None:
    saved(tmp_path / "cat-state", 2)
    saved(tmp_path / ".cat-state.0123abcd.old", 1)
    saved(tmp_path / ".cat-000001-state.0123abcd.old", 1)
    saved_states.clean_leftovers(tmp_path, "cat")
    assert {path.name for path in tmp_path.iterdir()} == {"cat-state", "cat-000001-state"}
    assert saved_states.read(tmp_path / "cat-state").step == 2


def test_where_the_new_state_cannot_take_its_place_the_old_one_comes_back(tmp_path: Path) -> None:
    saved(tmp_path / "cat-state", 1)
    with pytest.raises(OSError):
        state.replace_folder(tmp_path / "missing", tmp_path / "cat-state", tmp_path / "old")
    assert saved_states.read(tmp_path / "cat-state").step == 1 and not (tmp_path / "old").exists()


# --- contents


def changed(change: Callable[[dict[str, Any]], Any]) -> None:
    """An optimizer whose state was loaded and is changed behind its form."""
    one = live()
    form = OptimizerForm(one.optimizer)
    form.check()
    (moments, *_) = one.optimizer.state.values()
    change(moments)
    form.check()


@pytest.mark.parametrize(
    ("change", "reported"),
    [
        (lambda state: state.update(exp_avg=torch.zeros(3, 2)), r"exp_avg of its optimizer is float32 \[3, 2\], and float32 \[2, 3\]"),
        (lambda state: state.update(exp_avg=torch.zeros(2, 3).double()), "exp_avg of its optimizer is float64"),
        (lambda state: state.update(exp_avg=torch.zeros(3, 2).t()), "no plain tensor"),
        (lambda state: state.update(more=torch.zeros(3, 2).t()), "more of its optimizer is no plain tensor"),
        (lambda state: state.pop("exp_avg_sq"), "lacks exp_avg_sq"),
        (lambda state: state.update(step=3.0), "step of its optimizer is a number"),
    ],
)
def test_moments_have_the_form_that_a_step_gives_them(change: Callable[[dict[str, Any]], Any], reported: str) -> None:
    with pytest.raises(ValueError, match=reported):
        changed(change)
    changed(lambda state: state.update(exp_avg=torch.ones(2, 3)))


def test_switches_of_an_optimizer_are_those_of_now() -> None:
    one = live()
    form = OptimizerForm(one.optimizer)
    one.optimizer.param_groups[0]["fused"] = True  # how it computes is free
    form.check()
    one.optimizer.param_groups[0]["amsgrad"] = True
    with pytest.raises(ValueError, match="amsgrad of its optimizer was True and is False now"):
        form.check()


def test_a_state_of_another_optimizer_is_rejected() -> None:
    one = live()
    check_same_optimizer(one.optimizer, one.optimizer.state_dict())
    with pytest.raises(ValueError, match="another optimizer, whose settings are"):
        check_same_optimizer(one.optimizer, live(kind=torch.optim.RMSprop).optimizer.state_dict())


@pytest.mark.parametrize(
    ("change", "reported"),
    [
        ({}, None), ({"last_epoch": 2**40}, None), ({"last_epoch": 2**40 + 1}, "last_epoch"), ({"last_epoch": -1}, "last_epoch"),
        ({"_step_count": -1}, "_step_count"), ({"base_lrs": [0.1, 0.1]}, "base_lrs"), ({"_last_lr": ["x"]}, "_last_lr"),
    ],
)  # fmt: skip
def test_a_schedule_has_the_counters_and_rates_of_one(change: dict[str, Any], reported: str | None) -> None:
    values = live().schedule.state_dict()
    if reported is None:
        check_schedule({**values, **change}, values, 1)
    else:
        with pytest.raises(ValueError, match=reported):
            check_schedule({**values, **change}, values, 1)


def test_a_schedule_has_a_rate_for_every_group() -> None:
    with pytest.raises(ValueError, match="has 2 learning rates, and this training has 1"):
        check_schedule({"base_lrs": [0.1, 0.1]}, {}, 1)


@pytest.mark.parametrize(
    ("value", "like", "fits"),
    [
        (1, 0.5, True), (torch.ones(1), 0.5, True), (torch.ones(2), 0.5, False), (torch.ones(1, dtype=torch.cfloat), 0.5, False),
        (True, 0.5, False), ("1", 0.5, False), (None, 0.5, False), ((0.1, 0.2), (1.0, 1.0), True), ([0.1], (1.0, 1.0), False),
        ([0.1, "x"], (1.0, 1.0), False), (True, False, True), (1, False, False), ("a", "b", True), (1, "b", False), ({}, {}, True),
        ([], {}, False), (3, None, True),
    ],
)  # fmt: skip
def test_a_value_can_stand_where_another_does(value: Any, like: Any, fits: bool) -> None:
    if fits:
        check_kind(value, like, "this")
    else:
        with pytest.raises(ValueError, match="this is"):
            check_kind(value, like, "this")


# --- restoring


def test_a_schedule_of_another_class_does_its_steps_anew(tmp_path: Path) -> None:
    first = live()
    first.position = Position(step=3)
    first.save(tmp_path / "cat-state")
    rest = live()
    rest.schedule = torch.optim.lr_scheduler.ExponentialLR(rest.optimizer, gamma=0.5)
    rest.restore(saved_states.read(tmp_path / "cat-state"), new_schedule=True)
    assert rest.schedule.get_last_lr() == pytest.approx([0.1 / 8]) and rest.optimizer.param_groups[0]["lr"] == pytest.approx(0.1 / 8)


@pytest.mark.filterwarnings("ignore:Detected call of")  # PyTorch wants optimizer steps in between
@pytest.mark.parametrize("before", [{}, {"max_lr": 0.5, "total_steps": 10}], ids=["of step numbers", "of the same class"])
def test_a_new_schedule_keeps_nothing_of_the_old_one_in_the_groups(tmp_path: Path, before: dict[str, Any]) -> None:
    """OneCycleLR keeps its highest and lowest rate there, next to the optimizer's settings."""
    first, rest, whole = live(), live(), live()
    if before:
        first.schedule = torch.optim.lr_scheduler.OneCycleLR(first.optimizer, **before)
    first.position = Position(step=3)
    first.save(tmp_path / "cat-state")
    for one in (rest, whole):
        one.schedule = torch.optim.lr_scheduler.OneCycleLR(one.optimizer, max_lr=0.01, total_steps=20)
    rest.restore(saved_states.read(tmp_path / "cat-state"), new_schedule=True)
    for _ in range(3):
        whole.schedule.step()
    assert rest.schedule.get_last_lr() == pytest.approx(whole.schedule.get_last_lr())
    rest.schedule.step()
    whole.schedule.step()
    assert rest.optimizer.param_groups[0]["lr"] == pytest.approx(whole.optimizer.param_groups[0]["lr"])


def test_a_state_without_settings_must_be_of_the_same_optimizer(tmp_path: Path) -> None:
    """As musubi-tuner's own states are; with settings, the optimizers were compared before."""
    first = live(kind=torch.optim.RMSprop)
    first.facts = {}
    first.save(tmp_path / "cat-state")
    with pytest.raises(UserError, match="another optimizer"):
        live().restore(saved_states.read(tmp_path / "cat-state"))


def test_what_does_not_fit_after_all_is_reported_before_a_step(tmp_path: Path) -> None:
    folder = saved(tmp_path / "cat-state", 1)
    moments = torch.load(folder / saved_states.OPTIMIZER_FILE, weights_only=True)
    moments["state"][0]["exp_avg"] = torch.zeros(3)
    torch.save(moments, folder / saved_states.OPTIMIZER_FILE)
    edit(folder, files={})
    with pytest.raises(UserError, match=r"does not fit this training: exp_avg of its optimizer is float32 \[3\]"):
        live().restore(saved_states.read(folder))
