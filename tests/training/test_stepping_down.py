"""The GPU's memory runs out while it trains: the settings step down once, and what is learned is what it would have been."""

from __future__ import annotations

import weakref
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from musubi_backend.architectures.wan.adapter import Wan
from musubi_backend.encoders.wan_vae import WanVAE
from musubi_backend.training import loop as loop_module
from musubi_backend.training import stepping_down, vram
from musubi_backend.training.loop import Loop

FULL = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 15.60 GiB"
LENGTH: dict[str, Any] = {"max_train_steps": 4, "gradient_accumulation_steps": 2, "network_dropout": 0.1, "vram": 8}


def full(*_: Any, **__: Any) -> None:
    raise torch.OutOfMemoryError(FULL)


class Fault:
    """Raises at the `at`-th call of `where`, and at every later one from `again` on. Remembers what was on the device by then."""

    def __init__(self, patch: pytest.MonkeyPatch, at: int, again: int = 10**9) -> None:
        self.patch, self.at, self.again, self.calls = patch, at, again, 0
        self.held: list[weakref.ref[Any]] = []

    def due(self) -> bool:
        self.calls += 1
        return self.calls == self.at or self.calls >= self.again

    def forward(self, graded: bool = True) -> None:
        real = Wan.predict

        def predict(adapter: Wan, transformer: Any, noisy: Any, *rest: Any) -> Any:
            prediction = real(adapter, transformer, noisy, *rest)
            if not noisy.is_meta and torch.is_grad_enabled() is graded and self.due():
                self.held += map(weakref.ref, (transformer, noisy, prediction))
                full()
            return prediction

        self.patch.setattr(Wan, "predict", predict)

    def backward(self) -> None:
        real = Wan.predict

        def predict(adapter: Wan, transformer: Any, noisy: Any, *rest: Any) -> Any:
            prediction = real(adapter, transformer, noisy, *rest)
            if not noisy.is_meta and self.due():
                self.held += map(weakref.ref, (transformer, noisy, prediction))
                prediction.register_hook(full)
            return prediction

        self.patch.setattr(Wan, "predict", predict)

    def optimizer(self) -> None:
        """It has changed everything by then."""
        real = Loop.start

        def start(loop: Loop) -> None:
            optimizer = loop.run.choice.optimizer
            self.held += map(weakref.ref, optimizer.param_groups[0]["params"])
            optimizer.register_step_post_hook(lambda *_: full() if self.due() else None)
            del optimizer
            real(loop)

        self.patch.setattr(Loop, "start", start)


def watched_build(patch: pytest.MonkeyPatch, fault: Fault) -> list[bool]:
    """Whether what was on the device at the fault was gone, when all was built anew."""
    gone: list[bool] = []
    real = stepping_down.build

    def build(*rest: Any) -> Any:
        gone.append(all(one() is None for one in fault.held))
        return real(*rest)

    patch.setattr(stepping_down, "build", build)
    return gone


@pytest.fixture(scope="module")
def lowered(build: SimpleNamespace, model_and_caches: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a training learns that had the lower settings from the start."""
    project = build.project(tmp_path_factory.mktemp("lowered"), *model_and_caches)
    project.train("low", "--gradient_checkpointing", **LENGTH)
    learned: dict[str, Any] = project.lora("low")
    return learned


@pytest.mark.parametrize(
    ("where", "at", "step"),
    [("forward", 4, 1), pytest.param("backward", 1, 0, marks=pytest.mark.full(reason="as in forward")), ("optimizer", 3, 2)],
)
def test_a_training_goes_on_as_if_it_had_had_less_from_the_start(
    project: Any, same: SimpleNamespace, lowered: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str],
    where: str, at: int, step: int,
) -> None:  # fmt: skip
    """Four micro-steps of two make a step: the 4th is in the middle of the second."""
    monkeypatch.setattr(stepping_down, "_BETWEEN", 0)
    fault = Fault(monkeypatch, at)
    getattr(fault, where)()
    gone = watched_build(monkeypatch, fault)
    project.train("stepped", **LENGTH)
    assert gone == [True]
    assert same.bits(project.lora("stepped"), lowered)
    said = capfd.readouterr().err
    assert f"so this training goes on after step {step} with less: --gradient_checkpointing." in said


def test_batches_by_block_are_given_up(
    project: Any, same: SimpleNamespace, lowered: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """It runs out in the second batch of the second step's two."""
    real, runs = loop_module.together, []

    def together(run: Any, window: Any, go_back: Any) -> Any:
        runs.append(len(window))
        return real(
            run, window, lambda prediction, drawn: full() if len(runs) == 2 and drawn is window[1][0] else go_back(prediction, drawn)
        )

    monkeypatch.setattr(loop_module, "together", together)
    monkeypatch.setattr(vram, "_can_keep", lambda _: False)  # kept attention would go first, and be enough
    project.train("by block", "--gradient_checkpointing", "--accumulate_by_block", **LENGTH, blocks_to_swap=1)
    assert "goes on after step 1 with less: (without --accumulate_by_block)" in capfd.readouterr().err
    assert runs == [2, 2], "from then on one by one"
    assert same.bits(project.lora("by block"), lowered)


def test_gradients_are_scaled_and_clipped_as_before(
    project: Any, same: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """In fp16: the first step overflows and is left out; with a scaler that begins again the next one would be too. SGD learns as much as
    the clipping leaves."""
    scales: list[float] = []
    real = torch.amp.GradScaler.update
    monkeypatch.setattr(torch.amp.grad_scaler.GradScaler, "update", lambda scaler: (real(scaler), scales.append(scaler.get_scale())))
    monkeypatch.setattr(torch.amp, "GradScaler", partial(torch.amp.GradScaler, init_scale=2.0**20))
    length = {**LENGTH, "mixed_precision": "fp16", "max_grad_norm": 1e-3, "optimizer_type": "sgd", "max_train_steps": 3}
    project.train("low", "--gradient_checkpointing", **length)
    Fault(monkeypatch, 4).forward()
    project.train("stepped", **length)
    assert "so this training goes on after step 1 with less: --gradient_checkpointing." in capfd.readouterr().err
    assert scales == [2.0**19] * 6
    assert same.bits(project.lora("stepped"), project.lora("low"))


def test_a_second_time_ends_the_training_with_advice_and_what_was_learned(
    project: Any, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    Fault(monkeypatch, 3, again=4).forward()
    assert project.refused("ended", **LENGTH) == 1
    said = capfd.readouterr().err
    assert said.count("goes on after step 1 with less") == 1
    assert "ERROR: the GPU's memory is full while training " in said and "more were needed). Use --fp8_base" in said
    assert (project.folder / "out" / "ended" / "cat-step00000001-state" / "training_state.json").exists()


def test_what_cannot_be_made_anew_ends_the_training_with_words(
    project: Any, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def lost(*_: Any) -> None:
        raise RuntimeError("CUDA error: the launch timed out")

    Fault(monkeypatch, 3).forward()
    monkeypatch.setattr(stepping_down, "build", lost)
    assert project.refused("lost", **LENGTH) == 1
    said = capfd.readouterr().err
    assert "ERROR: the GPU's memory was full while training " in said
    assert "could not go on with --gradient_checkpointing: CUDA error: the launch timed out. Give it" in said and "Traceback" not in said
    assert (project.folder / "out" / "lost" / "cat-step00000001-state" / "training_state.json").exists()


def test_nothing_steps_down_with_vram_off(project: Any, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    Fault(monkeypatch, 1).forward()
    assert project.refused("off", **{**LENGTH, "vram": "off"}) == 1
    assert "with less" not in capfd.readouterr().err


def test_what_is_measured_beside_the_training_is_measured_again(
    project: Any, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The memory runs out in the validation before the first step."""
    fault = Fault(monkeypatch, 2)
    fault.forward(graded=False)
    gone = watched_build(monkeypatch, fault)
    project.train("validated", max_train_steps=1, vram=8, validation_split=0.25)
    said = capfd.readouterr().err
    assert gone == [True]
    assert (
        "goes on after step 0 with less" in said and "validation loss after step 0: " in said and "validation loss after step 1: " in said
    )


@pytest.mark.full(reason="the demo's text encoder and VAE, for what the loop does alike with the validation")
def test_samples_are_made_again(
    project: Any, build: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from test_samples import sampling

    samples = sampling(project, build, "a cat --w 32 --h 32 --s 1 --l 1")
    fault = Fault(monkeypatch, 1)
    real = WanVAE.decode
    monkeypatch.setattr(WanVAE, "decode", lambda vae, z: full() if not z.is_meta and fault.due() else real(vae, z))
    out = project.train("sampled", sample_every_n_steps=1, max_train_steps=2, vram=8, **samples)
    said = capfd.readouterr().err
    assert "memory was full while decoding samples, so this training goes on after step 1 with less: --vae_cache_cpu" in said
    assert len(list((out / "sample").iterdir())) == 2
