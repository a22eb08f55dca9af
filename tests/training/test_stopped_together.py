"""Several processes are stopped in the middle of a window, or one of them is killed; what continues is what would have gone on: with the
transformer whole in each and spread over them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import group
import pytest
import torch
from musubi_backend.weights.safetensors_file import load

pytest.importorskip("accelerate")
pytestmark = pytest.mark.slow
SPREAD = ("--fsdp", "--gradient_checkpointing")
WINDOWS = {
    "max_train_steps": 6, "gradient_accumulation_steps": 3, "network_args": ["module_dropout=0.3"], "save_every_n_steps": 1,
    "lr_scheduler": "cosine",
}  # fmt: skip
"""An epoch of 8 clips is 4 micro-steps of two processes: a window of 3, and one that the end of the epoch cuts short."""
EXPERTS = {"task": "t2v-A14B", "steps_per_expert": 2, "timestep_boundary": 675}
OFTEN, OTHERS = ("stop in 6",), ("terminate in 6", "interrupt in 6", "stop in 4")
"""Stories: all leave after step 2. That which is in micro-step 4 has its checkpoint already."""


@pytest.fixture(scope="module")
def stopped(
    model_and_caches: tuple[Path, Path], build: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> group.Group:
    folder = tmp_path_factory.mktemp("stopped together")
    project = build.project(folder, model_and_caches[0], build.caches(folder, clips=8))

    def rest(name: str, *flags: str, **values: Any) -> dict[str, Any]:
        return group.scene(project, f"{name}, rest", *flags, **values, resume=folder / "out" / name / "cat-step00000002-state")

    full = request.config.getoption("--full")
    scenes = [group.scene(project, "whole", "--save_state", **WINDOWS)]
    for story in OFTEN + OTHERS * full:
        scenes += [group.scene(project, story, "--save_state", *SPREAD, story=story, **WINDOWS), rest(story, *SPREAD, **WINDOWS)]
    if full:
        experts = {**EXPERTS, **WINDOWS, "dit_high_noise": project.dit}
        scenes += [group.scene(project, "experts", *SPREAD, **experts)]
        scenes += [group.scene(project, "experts, stop", *SPREAD, story="stop in 6", **experts), rest("experts, stop", *SPREAD, **experts)]
    scenes += [group.scene(project, "killed", *SPREAD, story="kill in 6", **{**WINDOWS, "save_every_n_steps": None})]
    return group.played(project, folder, scenes, killed=1)


ALL = [*OFTEN, *(pytest.param(story, marks=pytest.mark.full(reason="other ways to ask for the same stop")) for story in OTHERS)]


@pytest.mark.parametrize("story", ALL)
def test_what_was_stopped_goes_on_to_the_same_bits(story: str, stopped: group.Group, same: SimpleNamespace) -> None:
    assert stopped.results[story] == [3, 3], stopped.texts[story]
    assert "stopped after step 2 of 6" in stopped.texts[story][0]
    assert same.bits(stopped.lora(f"{story}, rest"), stopped.lora("whole"))
    assert stopped.learned(story)[:2] + stopped.learned(f"{story}, rest") == stopped.learned("whole")


@pytest.mark.full(reason="three trainings of two processes; test_stop has the experts in one")
def test_two_spread_experts_that_were_stopped_go_on_to_the_same_bits(stopped: group.Group, same: SimpleNamespace) -> None:
    assert stopped.results["experts, stop"] == [3, 3], stopped.texts["experts, stop"]
    assert same.bits(stopped.lora("experts, stop, rest"), stopped.lora("experts"))


def test_when_one_is_killed_the_other_saves_what_a_run_of_that_step_saves(stopped: group.Group, same: SimpleNamespace) -> None:
    assert stopped.results["killed"] == [1], stopped.texts["killed"]
    assert _last(stopped, "killed").startswith("ERROR: process 1 of 2 (on ") and "if it does not, it was killed" in _last(stopped, "killed")
    found, wanted = stopped.state("killed", 2), stopped.state("whole", 2)
    assert str(found) in _last(stopped, "killed")
    assert same.bits(load(found / "model.safetensors"), load(wanted / "model.safetensors"))
    assert _moments(found) == _moments(wanted)


ENDS = {
    "kill the main one in 6": (0, "ERROR: process 0 of 2 (on "), "kill the main one in 6 spread": (0, "ERROR: process 0 of 2 (on "),
    "hang in 6": (1, "gave no sign of life for 4 seconds"), "fail in 6 spread": (None, "ERROR: the cache of clip 3 is gone"),
}  # fmt: skip


@pytest.mark.full(reason="starts two processes for each; the one that is killed is above")
@pytest.mark.parametrize("name", ENDS)
def test_whatever_ends_one_of_them_all_end_with_the_steps_saved_and_a_message(
    name: str, model_and_caches: tuple[Path, Path], build: SimpleNamespace, tmp_path: Path
) -> None:
    lost, said = ENDS[name]
    project = build.project(tmp_path, model_and_caches[0], build.caches(tmp_path, clips=8))
    spread = SPREAD if "spread" in name else ()
    scene = group.scene(project, name, *spread, story=name.removesuffix(" spread"), **{**WINDOWS, "save_every_n_steps": None})
    ended = group.played(project, tmp_path, [scene], killed=lost)
    assert set(ended.results[name]) == {1}, ended.texts[name]
    assert said in _last(ended, name) and "Traceback" not in "".join(ended.texts[name])
    assert ended.state(name, 2).is_dir()


def _last(group_of: group.Group, name: str) -> str:
    """The last line of the last of those that are left."""
    return group_of.texts[name][-1].strip().splitlines()[-1]


def _moments(state: Path) -> list[tuple[Any, ...]]:
    saved = torch.load(state / "optimizer.bin", weights_only=True)["state"]
    return [(number, name, one.tolist()) for number, values in saved.items() for name, one in values.items()]
