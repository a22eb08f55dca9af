"""States whose files are whole and do not fit: said in one message before a kernel sees them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from musubi_backend.training import saved_states


@pytest.fixture(scope="module")
def made(model_and_caches: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory, build: SimpleNamespace) -> dict[str, Path]:
    """A state per optimizer."""
    project = build.project(tmp_path_factory.mktemp("states"), *model_and_caches)
    made = {}
    for kind, arguments in (("adamw", None), ("adafactor", ["relative_step=False"]), ("SGD", ["momentum=0.9"])):
        out = project.train(kind, "--save_state", optimizer_type=kind, optimizer_args=arguments, max_train_steps=2, lr_scheduler="cosine")
        made[kind] = out / "cat-state"
    return made


def change(state: Path, target: Path, name: str, edit: Callable[[Any], Any]) -> Path:
    """A copy of a state with one file edited and all its checksums right."""
    shutil.copytree(state, target)
    path = target / name
    if name == saved_states.POSITION_FILE:
        path.write_text(json.dumps(edit(json.loads(path.read_text()))))
        return target
    values = torch.load(path, weights_only=True)
    edited = edit(values)
    torch.save(values if edited is None else edited, path)
    position = json.loads((target / saved_states.POSITION_FILE).read_text())
    position["files"][name] = saved_states.contents(target)[name]
    (target / saved_states.POSITION_FILE).write_text(json.dumps(position))
    return target


def of_each(key: str, make: Callable[[torch.Tensor], Any]) -> Callable[[Any], None]:
    def edit(values: Any) -> None:
        for state in values["state"].values():
            if key in state:
                state[key] = make(state[key])

    return edit


def in_group(key: str, value: Any) -> Callable[[Any], None]:
    return lambda values: values["param_groups"][0].update({key: value})


@pytest.mark.parametrize(
    ("kind", "edit"),
    [
        ("adamw", of_each("exp_avg", lambda t: t[:1].clone())),
        ("adamw", of_each("exp_avg_sq", lambda t: torch.zeros(3))),
        ("adamw", of_each("exp_avg", lambda t: t.t().contiguous())),
        ("adamw", of_each("exp_avg", lambda t: torch.zeros(1).expand(t.shape))),
        ("adamw", of_each("exp_avg", lambda t: t.to_sparse())),
        ("adamw", of_each("exp_avg", lambda t: 0.5)),
        ("adamw", of_each("step", lambda t: torch.ones(2))),
        ("adamw", lambda values: [state.pop("exp_avg_sq") for state in values["state"].values()] and None),
        ("adamw", lambda values: values["param_groups"][0]["params"].pop() and None),
        ("adamw", lambda values: values["state"].update({10_000: values["state"][0]})),
        ("adamw", in_group("betas", [0.9])),
        ("adamw", in_group("lr", "1e-4")),
        ("adamw", in_group("eps", torch.ones(2))),
        ("adamw", in_group("amsgrad", True)),
        ("adamw", lambda values: [1, 2]),
        ("adamw", lambda values: {"state": [], "param_groups": 3}),
        ("adafactor", of_each("exp_avg_sq_row", lambda t: t[:1].clone())),
        ("SGD", of_each("momentum_buffer", lambda t: t.flatten()[:2].clone())),
    ],
)
def test_an_optimizer_state_of_another_form_is_rejected(
    kind: str, edit: Any, made: dict[str, Path], model_and_caches: Any, build: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    state = change(made[kind], tmp_path / "cat-state", saved_states.OPTIMIZER_FILE, edit)
    arguments = {"adamw": None, "adafactor": ["relative_step=False"], "SGD": ["momentum=0.9"]}[kind]
    project = build.project(tmp_path, *model_and_caches)
    assert project.refused("next", optimizer_type=kind, optimizer_args=arguments, resume=state, lr_scheduler="cosine") == 1
    reported = capfd.readouterr().err
    assert f"--resume {state} does not fit this training" in reported
    assert "Traceback" not in reported


@pytest.mark.parametrize(
    ("name", "edit"),
    [
        ("scheduler.bin", lambda values: values.update(last_epoch="2")),
        ("scheduler.bin", lambda values: values.update(last_epoch=-5)),
        ("scheduler.bin", lambda values: values.update(base_lrs=[0.1, 0.2])),
        ("scheduler.bin", lambda values: values.update(_last_lr=["x"])),
        ("scheduler.bin", lambda values: "no schedule"),
        (saved_states.POSITION_FILE, lambda values: {**values, "files": [1]}),
        (saved_states.POSITION_FILE, lambda values: {**values, "files": {"model.safetensors": 3}}),
        (saved_states.POSITION_FILE, lambda values: {**values, "step": 1e400}),
        (saved_states.POSITION_FILE, lambda values: {**values, "epoch": -1}),
        (saved_states.POSITION_FILE, lambda values: {**values, "batch": 10**30}),
        (saved_states.POSITION_FILE, lambda values: {**values, "settings": [1]}),
        (saved_states.POSITION_FILE, lambda values: {**values, "of_stop": 1, "total_steps": "x"}),
        (saved_states.POSITION_FILE, lambda values: {**values, "history": "abc"}),
        (saved_states.POSITION_FILE, lambda values: {**values, "validation": {"two": 0.5}}),
        (saved_states.POSITION_FILE, lambda values: [values]),
    ],
)
def test_schedules_and_positions_of_another_form_are_rejected(
    name: str, edit: Any, made: dict[str, Path], model_and_caches: Any, build: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    state = change(made["adamw"], tmp_path / "cat-state", name, edit)
    project = build.project(tmp_path, *model_and_caches)
    assert project.refused("next", resume=state, lr_scheduler="cosine") == 1
    reported = capfd.readouterr().err
    assert f"ERROR: --resume {state}" in reported
    assert "Traceback" not in reported


def test_a_pickle_that_cannot_be_read_is_named(
    made: dict[str, Path], tmp_path: Path, build: Any, model_and_caches: Any, capfd: Any
) -> None:
    state = shutil.copytree(made["adamw"], tmp_path / "cat-state")
    content = bytearray((state / "optimizer.bin").read_bytes())
    content[len(content) // 3 :] = b"\xff" * (len(content) - len(content) // 3)
    (state / "optimizer.bin").write_bytes(content)
    (state / saved_states.POSITION_FILE).unlink()  # as musubi-tuner leaves it: nothing says what was written
    assert build.project(tmp_path, *model_and_caches).refused("next", resume=state) == 1
    assert "optimizer.bin cannot be read" in capfd.readouterr().err
