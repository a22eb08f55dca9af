"""While a training goes on, folders vanish or cannot be written and caches are damaged: nothing that was learned is lost, what can go on
does, and one message says what happened."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from musubi_backend import job
from musubi_backend.architectures.wan.model import WanAttentionBlock
from musubi_backend.weights.safetensors_file import load, read_header, save_atomic

STEPS = {"max_train_steps": 6, "save_every_n_steps": 2}  # four clips: an epoch has four steps, and a step two blocks


@pytest.fixture(scope="module")
def whole(model_and_caches: tuple[Path, Path], build: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """The LoRA of a training that nothing happened to."""
    project = build.project(tmp_path_factory.mktemp("whole"), *model_and_caches)
    project.train("out", **STEPS)
    return dict(project.lora("out"))


@pytest.fixture
def rescued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where what cannot be written in its place goes: the job's folder."""
    folder = tmp_path / "job"
    folder.mkdir()
    monkeypatch.setenv(job.JOB_DIR_VARIABLE, str(folder))
    monkeypatch.setattr(job, "watch_for_stop", lambda: None)  # nobody writes to our stdin
    return folder


def before_step(monkeypatch: pytest.MonkeyPatch, step: int, do: Callable[[], object]) -> None:
    forward, calls = WanAttentionBlock.forward, []

    def counting(self: WanAttentionBlock, *arguments: Any) -> torch.Tensor:
        calls.append(None)
        if len(calls) == 2 * step - 1:
            do()
        return forward(self, *arguments)

    monkeypatch.setattr(WanAttentionBlock, "forward", counting)


def test_a_checkpoint_that_cannot_be_written_is_said_and_the_next_one_is_tried(
    project: Any, whole: Any, same: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    out = project.folder / "out" / "part"
    (out / "cat-step00000002.safetensors" / "in the way").mkdir(parents=True)
    before_step(monkeypatch, 4, lambda: shutil.rmtree(out))
    project.train("part", "--save_state", **STEPS)
    said = capfd.readouterr().err
    assert "the checkpoint of step 2 could not be saved, training continues: " in said and "Traceback" not in said
    assert sorted(path.name for path in out.glob("*step*")) == [
        f"cat-step0000000{step}{what}" for step in (4, 6) for what in ("-state", ".safetensors")
    ]
    assert same.bits(project.lora("part"), whole)


def test_a_lora_that_cannot_be_written_at_the_end_is_elsewhere(
    project: Any, whole: Any, same: SimpleNamespace, rescued: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (project.folder / "out" / "part" / "cat.safetensors" / "in the way").mkdir(parents=True)
    assert project.refused("part", **STEPS) == 1
    said = capfd.readouterr().err
    assert f"ERROR: {project.folder / 'out/part/cat.safetensors'} could not be written" in said
    assert f"What was learned is in {rescued / 'cat.safetensors'}: move it from there" in said and "Traceback" not in said
    assert same.bits(load(rescued / "cat.safetensors"), whole)


def test_a_stop_whose_folder_is_gone_for_good_saves_elsewhere(
    project: Any, whole: Any, same: SimpleNamespace, rescued: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    out = project.folder / "out" / "part"

    def take_its_place_and_stop() -> None:
        shutil.rmtree(out)
        out.write_text("in the way")
        job.request_stop()

    with monkeypatch.context() as patch:
        before_step(patch, 4, take_its_place_and_stop)
        assert project.refused("part", **STEPS) == 3
    state = rescued / "cat-step00000003-state"
    assert f"continue with --resume {state}" in capfd.readouterr().err
    job._stop.clear()
    project.train("again", resume=state, **STEPS)
    assert same.bits(project.lora("again"), whole)


@pytest.mark.parametrize("what", ["gone", "cut off", "not finite"])
def test_a_cache_that_is_damaged_meanwhile_costs_nothing_that_was_learned(
    what: str, build: SimpleNamespace, whole: Any, same: SimpleNamespace, tmp_path: Path, model_and_caches: tuple[Path, Path],
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """All of them, so that it is the first item of an epoch too, whatever the order."""
    config = build.caches(tmp_path)
    project, cache = build.project(tmp_path, model_and_caches[0], config), tmp_path / "cache"
    shutil.copytree(cache, tmp_path / "good")

    def damage() -> None:
        for path in cache.glob("*_wan.safetensors"):
            data = path.read_bytes()
            if what == "gone":
                path.unlink()
            else:
                path.write_bytes(data[:-100] if what == "cut off" else data[:-4000] + b"\xff\x7f" * 2000)  # NaN

    with monkeypatch.context() as patch:
        before_step(patch, 4, damage)  # while the last batch of the epoch is trained
        assert project.refused("part", **{**STEPS, "save_every_n_steps": None}) == 1
    said = capfd.readouterr().err
    assert said.count("ERROR: ") == 1 and "Traceback" not in said and "clip" in said.partition("ERROR: ")[2]
    shutil.rmtree(cache)
    (tmp_path / "good").rename(cache)
    project.train("again", resume=tmp_path / "out" / "part" / "cat-step00000004-state", **STEPS)
    assert same.bits(project.lora("again"), whole)


def test_weights_that_are_no_numbers_are_what_the_first_step_names(project: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    damaged = {name: torch.full_like(tensor, float("nan")) for name, tensor in load(project.dit).items()}
    save_atomic(damaged, tmp_path / "dit.safetensors", read_header(project.dit).metadata)
    assert project.refused("out", dit=tmp_path / "dit.safetensors") == 1
    assert "ERROR: the loss is not finite at the very first step, training clip" in capfd.readouterr().err
    assert not list((project.folder / "out" / "out").glob("*.safetensors"))
