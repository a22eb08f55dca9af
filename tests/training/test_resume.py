"""Interrupted and uninterrupted trainings end in the same bits: by state, by graceful stop, by kill -9, with accumulation."""

from __future__ import annotations

import json
import multiprocessing
import random
import shutil
import signal
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from musubi_backend import job
from musubi_backend.__main__ import main
from musubi_backend.training import loop, train
from musubi_backend.weights.safetensors_file import load, read_header, save_atomic

# what makes a run depend on its position: dropout, accumulation that does not divide the epoch, warm-up, strata of timesteps
DEMANDING = {
    "network_dropout": 0.1,
    "network_args": ["rank_dropout=0.1", "module_dropout=0.1"],
    "gradient_accumulation_steps": 3,
    "lr_scheduler": "cosine",
    "lr_warmup_steps": 2,
    "num_timestep_buckets": 3,
}


def stop_after(monkeypatch: pytest.MonkeyPatch, micro_steps: int) -> None:
    """Ask for a stop while the given micro-step (counted in this process) is computed."""
    original, done = loop.Loop._backward, 0

    def counting(self: loop.Loop, *args: Any) -> torch.Tensor:
        nonlocal done
        done += 1
        if done == micro_steps:
            job.request_stop()
        return original(self, *args)

    monkeypatch.setattr(loop.Loop, "_backward", counting)


def test_resuming_from_a_step_state_gives_the_same_bits(project: Any, same: SimpleNamespace) -> None:
    project.train("whole", "--save_state", save_every_n_steps=4, **DEMANDING)
    state = project.folder / "out/whole/cat-step00000004-state"
    project.train("rest", "--save_state", resume=state, save_every_n_steps=4, **DEMANDING)
    assert same.bits(project.lora("rest"), project.lora("whole"))
    assert same.bits(project.lora("rest", "cat-step00000008"), project.lora("whole", "cat-step00000008"))
    assert not (project.folder / "out/rest/cat-step00000004.safetensors").exists()


@pytest.mark.parametrize("optimizer", ["AdamWScheduleFree", "ProdigyPlusScheduleFree", "LoRA-RITE"])
def test_optimizers_of_libraries_resume_to_the_same_bits(optimizer: str, project: Any, same: SimpleNamespace) -> None:
    pytest.importorskip("pytorch_optimizer", reason="not installed; install.py --with optimizers has it")
    pytest.importorskip("prodigyplus", reason="not installed; install.py --with optimizers has it")
    settings = {"optimizer_type": optimizer, "learning_rate": "1e-3" if "Prodigy" not in optimizer else "1", "save_every_n_steps": 2}
    project.train("whole", "--save_state", max_train_steps=4, **settings)
    project.train("rest", "--save_state", max_train_steps=4, resume=project.folder / "out/whole/cat-step00000002-state", **settings)
    assert same.bits(project.lora("rest"), project.lora("whole"))


def test_weights_are_saved_and_sampled_as_the_optimizer_means_them(project: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    class Between(torch.optim.SGD):
        """While training its weights are 100 away from those it means."""

        away = 0.0

        def go(self, where: float) -> None:
            for weight in self.param_groups[0]["params"]:
                weight.data += where - self.away
            self.away = where

        def train(self) -> None:
            self.go(100)

        def eval(self) -> None:
            self.go(0)

        def step(self, closure: Any = None) -> Any:
            if not self.away:
                raise RuntimeError("a step with the weights that are meant for saving")
            return super().step(closure)

    monkeypatch.setattr(torch.optim, "Between", Between, raising=False)
    stop_after(monkeypatch, 3)
    asked = {"optimizer_type": "Between", "learning_rate": "1e-8", "save_every_n_steps": 1, "max_train_steps": 4}
    assert project.refused("saved", "--save_state", **asked) == 3
    names = {path.name for path in (project.folder / "out/saved").glob("*.safetensors")}
    assert names == {"cat-step00000001.safetensors", "cat-step00000002.safetensors"}
    for path in (project.folder / "out/saved").rglob("*.safetensors"):
        for name, tensor in load(path).items():
            if "lora_" in name:
                assert tensor.abs().max() < 50, f"{path.name}: {name}"


@pytest.mark.parametrize("kind", ["loha", "lokr"])
def test_other_networks_resume_to_the_same_bits_and_not_as_a_lora(
    kind: str, project: Any, same: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {"network_module": f"networks.{kind}", "max_train_steps": 4, "save_every_n_steps": 2, "network_dim": 2}
    project.train("whole", "--save_state", **settings)
    state = project.folder / "out/whole/cat-step00000002-state"
    project.train("rest", resume=state, **settings)
    assert any(name.endswith({"loha": "hada_w2_a", "lokr": "lokr_w1"}[kind]) for name in project.lora("rest"))
    assert same.bits(project.lora("rest"), project.lora("whole"))
    assert project.refused("lora", resume=state, max_train_steps=4, network_dim=2) == 1
    assert "does not fit" in capsys.readouterr().err


def test_resuming_from_an_epoch_state_keeps_counting_epochs(project: Any, same: SimpleNamespace) -> None:
    settings = {"save_every_n_epochs": 1, "max_train_steps": None, "max_train_epochs": 4}
    project.train("whole", "--save_state", **settings)
    out = project.train("rest", "--save_state", resume=project.folder / "out/whole/cat-000002-state", **settings)
    assert {path.name for path in out.glob("*.safetensors")} == {"cat-000003.safetensors", "cat.safetensors"}
    assert same.bits(project.lora("rest"), project.lora("whole"))
    metadata = read_header(out / "cat.safetensors").metadata
    assert metadata["ss_epoch"] == "4" and metadata["ss_steps"] == "16"


@pytest.mark.parametrize("micro_steps", [1, 2, 5, 8, 9, 14])
def test_a_graceful_stop_anywhere_resumes_to_the_same_bits(
    micro_steps: int, project: Any, same: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    project.train("whole", **DEMANDING)
    with monkeypatch.context() as patch:
        stop_after(patch, micro_steps)
        assert project.refused("part", **DEMANDING) == 3
    job._stop.clear()
    states = list((project.folder / "out/part").glob("*-state"))
    if not states:  # stopped inside the first accumulation window: nothing was learned yet
        assert micro_steps < 3 and "nothing new to save" in capsys.readouterr().err
        return
    assert f"--resume {states[0]}" in capsys.readouterr().err
    assert (states[0].parent / f"{states[0].name.removesuffix('-state')}.safetensors").exists()
    project.train("part", resume=states[0], **DEMANDING)
    assert same.bits(project.lora("part"), project.lora("whole"))


def test_training_further_than_planned_continues_from_the_last_state(project: Any, same: SimpleNamespace) -> None:
    project.train("whole", max_train_steps=14)
    project.train("first", "--save_state_on_train_end", max_train_steps=6)
    project.train("second", resume=project.folder / "out/first/cat-state", max_train_steps=14)
    assert same.bits(project.lora("second"), project.lora("whole"))


def test_a_finished_state_trains_nothing_and_says_so(project: Any, same: SimpleNamespace, capsys: pytest.CaptureFixture[str]) -> None:
    project.train("first", "--save_state_on_train_end")
    project.train("again", resume=project.folder / "out/first/cat-state")
    assert same.bits(project.lora("again"), project.lora("first"))
    assert "nothing is left to train" in capsys.readouterr().err


def test_the_seed_of_the_state_wins_and_other_changes_are_reported(
    project: Any, same: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    project.train("whole", "--save_state", save_every_n_steps=5)
    state = project.folder / "out/whole/cat-step00000005-state"
    project.train("rest", resume=state, seed=99)
    assert "the state's seed 7 is used" in capsys.readouterr().err
    assert same.bits(project.lora("rest"), project.lora("whole"))
    project.train("other", resume=state, discrete_flow_shift=5)
    assert "--discrete_flow_shift was 3.0" in capsys.readouterr().err


def test_a_changed_dataset_starts_the_epoch_again(project: Any, build: SimpleNamespace, capsys: pytest.CaptureFixture[str]) -> None:
    project.train("whole", "--save_state", save_every_n_steps=5)
    config = build.caches(project.folder, clips=3)
    project.train("rest", resume=project.folder / "out/whole/cat-step00000005-state", dataset_config=config)
    assert "the dataset changed" in capsys.readouterr().err


def test_another_number_of_processes_is_reported(project: Any, capsys: pytest.CaptureFixture[str]) -> None:
    notes = project.train("whole", "--save_state", save_every_n_steps=5) / "cat-step00000005-state" / "training_state.json"
    project.train("rest", resume=notes.parent)
    assert "number of processes" not in capsys.readouterr().err
    notes.write_text(json.dumps({**json.loads(notes.read_text()), "processes": 2}))
    project.train("rest", resume=notes.parent)
    assert "number of processes was 2 when the state was saved and is 1 now" in capsys.readouterr().err


def test_a_state_of_musubi_tuner_restarts_the_count_with_its_weights(
    project: Any, same: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    project.train("first", "--save_state", save_every_n_steps=5, lr_scheduler="linear")
    state = project.folder / "musubi-state"
    shutil.copytree(project.folder / "out/first/cat-step00000005-state", state)
    (state / "training_state.json").unlink()
    (state / "random_states_0.pkl").write_bytes(b"never unpickled")
    out = project.train("rest", resume=state, max_train_steps=3, lr_scheduler="linear", save_every_n_steps=1)
    assert "saved by musubi-tuner" in capsys.readouterr().err
    assert (out / "cat-step00000001.safetensors").exists()
    moved = same.difference(load(out / "cat-step00000001.safetensors"), load(state / "model.safetensors"))
    assert 0 < moved < 0.05, "one small step away from the state's weights"


@pytest.mark.slow
def test_an_optimizer_that_chooses_its_own_rate_resumes_without_warnings(
    project: Any, same: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("transformers")
    settings = {"optimizer_type": "Adafactor", "lr_scheduler": "constant", "max_train_steps": 6}
    out = project.train("whole", "--save_state", save_every_n_steps=3, **settings)
    capsys.readouterr()
    project.train("rest", resume=out / "cat-step00000003-state", **settings)
    assert "when the state was saved" not in capsys.readouterr().err
    assert same.bits(project.lora("rest"), project.lora("whole"))


def test_fp16_trains_with_a_loss_scale_that_survives_resuming(project: Any, same: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first scale is far too large on purpose: steps that overflow change nothing, and the scale comes down until they work."""
    scaler = torch.amp.GradScaler
    monkeypatch.setattr(torch.amp, "GradScaler", lambda device: scaler(device, init_scale=2.0**30))
    out = project.train("whole", "--save_state", mixed_precision="fp16", save_every_n_steps=8, max_train_steps=24)
    skipped = load(out / "cat-step00000008.safetensors")
    assert all(not tensor.any() for name, tensor in skipped.items() if "lora_up" in name), "an overflowing step changes nothing"
    learned = project.lora("whole")
    assert any(tensor.any() for name, tensor in learned.items() if "lora_up" in name)
    assert all(tensor.isfinite().all() for tensor in learned.values())
    resumed = {"resume": out / "cat-step00000016-state", "mixed_precision": "fp16", "max_train_steps": 24}
    project.train("rest", **resumed)
    assert same.bits(project.lora("rest"), learned)
    (out / "cat-step00000016-state" / "scaler.pt").unlink()
    place = out / "cat-step00000016-state" / "training_state.json"
    values = json.loads(place.read_text(encoding="utf-8"))
    del values["files"]["scaler.pt"]
    place.write_text(json.dumps(values), encoding="utf-8")
    project.train("forgetful", **resumed)
    assert not same.bits(project.lora("forgetful"), learned), "the scale is part of the state"


def test_a_state_killed_while_it_was_replaced_is_found(project: Any, same: SimpleNamespace) -> None:
    out = project.train("whole", "--save_state_on_train_end", max_train_steps=4)
    (out / "cat-state").rename(out / ".cat-state.0123abcd.old")
    project.train("rest", resume=out / "cat-state", max_train_steps=6)
    project.train("longer", max_train_steps=6)
    assert same.bits(project.lora("rest"), project.lora("longer"))


def test_the_names_in_the_models_file_may_have_a_prefix_when_a_state_continues(project: Any, same: SimpleNamespace) -> None:
    out = project.train("first", "--save_state_on_train_end", max_train_steps=2)
    tensors, metadata = load(project.dit), read_header(project.dit).metadata
    prefixed = project.folder / "prefixed.safetensors"
    save_atomic({f"diffusion_model.{name}": tensor for name, tensor in tensors.items()}, prefixed, metadata)
    project.train("rest", resume=out / "cat-state", dit=prefixed, max_train_steps=3)
    project.train("plain", resume=out / "cat-state", max_train_steps=3)
    assert same.bits(project.lora("rest"), project.lora("plain"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"network_dim": 8}, "--network_dim is 8"),
        ({"resume": "nowhere-state"}, "does not exist"),
        ({"network_args": ["exclude_patterns=['.*ffn.*']"]}, "does not fit"),
    ],
)
def test_a_state_that_does_not_fit_is_rejected(
    change: dict[str, Any], words: str, project: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    project.train("first", "--save_state_on_train_end", max_train_steps=2)
    settings = {"resume": project.folder / "out/first/cat-state", **change}
    assert project.refused("second", **settings) == 1
    assert words in capsys.readouterr().err


def test_settings_that_changed_are_named_when_going_on(project: Any, capsys: pytest.CaptureFixture[str]) -> None:
    project.train("first", "--save_state_on_train_end", max_train_steps=1)
    state = project.folder / "out/first/cat-state"
    capsys.readouterr()
    project.train("same", resume=state, max_train_steps=2, network_args=["verbose=True"])
    assert "when the state was saved" not in capsys.readouterr().err
    project.train("other", "--fp8_base", resume=state, max_train_steps=2, max_grad_norm=0.5)
    said = capsys.readouterr().err
    assert "--fp8_base was False" in said and "--max_grad_norm was 1.0" in said


def test_a_state_of_another_model_is_rejected_before_it_is_loaded(
    project: Any, build: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    project.train("first", "--save_state_on_train_end", max_train_steps=2)
    wider = build.geometry.__class__(**{**build.geometry.__dict__, "dim": 64})
    other = build.transformer(project.folder / "wide.safetensors", wider)
    capsys.readouterr()
    assert project.refused("second", resume=project.folder / "out/first/cat-state", dit=other) == 1
    printed = capsys.readouterr()
    assert "belongs to another model" in printed.err and "import network module" not in printed.out


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGTERM handlers on Windows")
@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_the_state_and_ends_within_a_step(number: int, project: Any, same: SimpleNamespace) -> None:
    process = project.start("part", max_train_steps=2000)
    wait_for_steps(process, 3)
    process.send_signal(number)
    process.communicate()  # what it still prints is read, or it would wait for that
    assert process.returncode == 3
    states = list((project.folder / "out/part").glob("*-state"))
    assert len(states) == 1
    steps = int(states[0].name[8:16])
    project.train("part", resume=states[0], max_train_steps=steps + 5)
    project.train("whole", max_train_steps=steps + 5)
    assert same.bits(project.lora("part"), project.lora("whole"))


def wait_for_steps(process: Any, count: int) -> None:
    """Read the output until the bar shows `count` steps."""
    text = ""
    while (character := process.stdout.read(1)) != "":
        text += character
        if f"| {count}/" in text or (count < 10 and "it/s" in text.rpartition("epoch")[2] and "| 0/" not in text.rpartition("steps:")[2]):
            return
    raise AssertionError(f"the training ended early:\n{text}")


@pytest.mark.skipif(sys.platform == "win32", reason="kill -9 is SIGKILL")
@pytest.mark.slow
def test_kill_9_at_any_moment_loses_nothing(project: Any, same: SimpleNamespace) -> None:
    """Each process is a fork of one that has imported PyTorch, which starts far sooner than a new one."""
    kept = {"save_every_n_steps": 1, "save_last_n_steps": 3, "save_last_n_steps_state": 3}
    out = project.folder / "out/part"
    forks = multiprocessing.get_context("forkserver")
    forks.set_forkserver_preload([train.__name__])
    generator = random.Random(4)
    for _ in range(8):
        before = newest_state(out)
        command = project.argv("part", "--save_state", max_train_steps=100_000, resume=before, **kept)
        process = forks.Process(target=main, args=(command,), daemon=True)
        process.start()
        while newest_state(out) == before:
            assert process.is_alive(), "it ended by itself"
            time.sleep(0.005)
        time.sleep(generator.uniform(0.0, 0.1))
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        for file in out.glob("cat*.safetensors"):
            load(file)
    state = newest_state(out)
    assert state is not None and json.loads((state / "training_state.json").read_text())["step"] == int(state.name[8:16])
    steps = int(state.name[8:16]) + 2
    project.train("part", "--save_state", max_train_steps=steps, resume=state, **kept)
    project.train("whole", max_train_steps=steps)
    assert same.bits(project.lora("part"), project.lora("whole"))
    assert not [path for path in out.iterdir() if path.name.startswith(".")], "leftovers of the killed runs are gone"


def newest_state(out: Path) -> Path | None:
    return max(out.glob("cat-step*-state"), default=None)
