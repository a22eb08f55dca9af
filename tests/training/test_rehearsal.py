"""Optimizers and schedules that cannot do a training say so in one sentence before anything is loaded; training nothing is no success."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from musubi_backend import events, job
from musubi_backend.errors import UserError
from musubi_backend.training.rehearsal import rehearse
from musubi_backend.training.settings import TrainingSettings
from musubi_backend.training.voided import sets_its_rate, voided
from musubi_backend.weights.safetensors_file import read_header
from torch.optim.optimizer import register_optimizer_step_post_hook

OTHERS = {"LBFGS": "closure", "SparseAdam": "dense gradients", "Optimizer": "unexpected keyword argument"}
NEED_ARGUMENTS = {
    "ChainedScheduler": "schedulers", "CosineAnnealingLR": "T_max", "CosineAnnealingWarmRestarts": "T_0", "CyclicLR": "base_lr and max_lr",
    "ExponentialLR": "gamma", "LambdaLR": "lr_lambda", "MultiStepLR": "milestones", "MultiplicativeLR": "lr_lambda", "OneCycleLR": "max_lr",
    "SequentialLR": "schedulers and milestones", "StepLR": "step_size", "ReduceLROnPlateau": "needs metrics in every step",
    "LRScheduler": "NotImplementedError",
}  # fmt: skip


def settings(**values: Any) -> TrainingSettings:
    defaults = {
        "learning_rate": 1e-3, "lr_scheduler": "constant", "lr_warmup_steps": 0, "lr_decay_steps": 0, "lr_scheduler_num_cycles": 1,
        "lr_scheduler_power": 1, "lr_scheduler_timescale": None, "lr_scheduler_min_lr_ratio": None, "lr_scheduler_type": "",
        "lr_scheduler_args": None, "optimizer_type": "adamw", "optimizer_args": None, "network_args": None,
    }  # fmt: skip
    return TrainingSettings.read({**defaults, **values})


def tried(*rates: float, total: int = 10, **values: Any) -> None:
    """UserError, or the optimizer that was asked for has made a step."""
    stepped: list[str] = []
    hook = register_optimizer_step_post_hook(lambda optimizer, *_: stepped.append(type(optimizer).__name__.lower()))
    try:
        rehearse(settings(**values), rates or (1e-3,), total, torch.device("cpu"))
    finally:
        hook.remove()
    assert stepped == [values.get("optimizer_type", "adamw").rpartition(".")[2].lower()]


def classes(module: ModuleType, base: type) -> list[str]:
    return sorted(key for key, value in vars(module).items() if isinstance(value, type) and issubclass(value, base) and key[0] != "_")


@pytest.mark.parametrize("name", classes(torch.optim, torch.optim.Optimizer))
def test_every_optimizer_of_torch_trains_or_says_why_not(name: str) -> None:
    if name not in OTHERS:
        return tried(optimizer_type=f"torch.optim.{name}")
    with pytest.raises(UserError, match=f"--optimizer_type {name} can.*{OTHERS[name]}"):
        tried(optimizer_type=name)


@pytest.mark.parametrize("name", classes(torch.optim.lr_scheduler, torch.optim.lr_scheduler.LRScheduler))
def test_every_schedule_of_torch_trains_or_says_why_not(name: str) -> None:
    if name not in NEED_ARGUMENTS:
        return tried(lr_scheduler_type=name)
    with pytest.raises(UserError, match=f"--lr_scheduler_type {name} .*{NEED_ARGUMENTS[name]}"):
        tried(lr_scheduler_type=name)


def test_schedules_with_their_arguments_train() -> None:
    tried(lr_scheduler_type="OneCycleLR", lr_scheduler_args=["max_lr=1e-3", "total_steps=10"])
    tried(lr_scheduler_type="CosineAnnealingLR", lr_scheduler_args=["T_max=10"])
    pytest.importorskip("transformers")
    function = "transformers.optimization.get_cosine_schedule_with_warmup"
    tried(lr_scheduler_type=function, lr_scheduler_args=["num_warmup_steps=2", "num_training_steps=10"])


MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "a rate of 0": ({"learning_rate": 0.0}, "--learning_rate is 0"),
    "a warm-up of the only step": ({"lr_scheduler": "constant_with_warmup", "lr_warmup_steps": 1, "total": 1}, "0 all along .1 step\\)"),
    "pieces of 0": ({"lr_scheduler": "piecewise_constant", "lr_scheduler_args": ["step_rules='0:5,0'"]}, "0 all along"),
    "a class at 0": ({"lr_scheduler_type": "ConstantLR", "lr_scheduler_args": ["factor=0", "total_iters=99"]}, "0 all along"),
    "a cycle too short": (
        {"lr_scheduler_type": "OneCycleLR", "lr_scheduler_args": ["max_lr=1", "total_steps=5"]}, "cannot run the 10 steps",
    ),
    "an unknown argument of a schedule": ({"lr_scheduler_type": "StepLR", "lr_scheduler_args": ["stepsize=5"]}, "did you mean 'step_size'"),
    "no schedule": ({"lr_scheduler_type": "collections.OrderedDict"}, "rejected|not a learning rate schedule"),
    "an unknown argument": ({"optimizer_args": ["weight_decai=0.1"]}, r"weight_decai: AdamW has no such .*'weight_decay'\?\); it takes"),
    "a rate among the arguments": ({"optimizer_args": ["lr=0.1"]}, "the learning rate is --learning_rate"),
    "adafactor's schedule for another": ({"lr_scheduler": "adafactor:1e-3"}, "sets by itself, with relative_step=True"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_one_sentence(mistake: str) -> None:
    values, said = MISTAKES[mistake]
    values = dict(values)
    with pytest.raises(UserError, match=said):
        tried(values.get("learning_rate", 1e-3), **values)


def test_a_group_whose_rate_is_0_is_named() -> None:
    with pytest.raises(UserError, match="the learning rate of one group of weights is 0"):
        tried(1e-3, 0.0)


ADAFACTOR = {"optimizer_type": "adafactor"}
FIXED = {**ADAFACTOR, "optimizer_args": ["relative_step=False"]}


def test_what_adafactor_voids_is_rejected_or_said(caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("transformers")
    with caplog.at_level(logging.WARNING):
        tried(lr_scheduler="cosine", **ADAFACTOR)
    assert [record.message.split(":")[0] for record in caplog.records] == [
        "--learning_rate 0.001 is only the first rate shown", "--lr_scheduler cosine has no effect",
    ]  # fmt: skip
    for values in ({"lr_warmup_steps": 5}, {"lr_scheduler_type": "StepLR"}, {"network_args": ["loraplus_lr_ratio=4"]}):
        with pytest.raises(UserError, match="cannot act on Adafactor, which sets its own rate"):
            tried(**values, **ADAFACTOR)
    with pytest.raises(UserError, match="with a rate of your own choose another"):
        tried(lr_scheduler="adafactor", **FIXED)
    caplog.clear()
    tried(1e-3, 4e-3, lr_scheduler="cosine", lr_warmup_steps=2, **FIXED)
    assert not caplog.records


class AdamWScheduleFree(torch.optim.SGD):
    """Like those of the package schedulefree, in its name and its two modes."""

    def train(self) -> None:
        self.mode = "train"

    def eval(self) -> None:
        self.mode = "eval"


class OneRate(torch.optim.SGD):
    """Like Prodigy and D-Adaptation: one rate for all groups, found out in the first step; and swallows arguments it does not know."""

    def __init__(self, params: Any, lr: float = 1.0, d_coef: float = 1.0, **kwargs: Any) -> None:
        super().__init__(params, lr)

    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        if len({group["lr"] for group in self.param_groups}) > 1:
            raise RuntimeError("Setting different lr values in different parameter groups is only supported for values of 0")


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> str:
    module = ModuleType("some_optimizers")
    vars(module).update(AdamWScheduleFree=AdamWScheduleFree, OneRate=OneRate)
    monkeypatch.setitem(sys.modules, "some_optimizers", module)
    return "some_optimizers"


def test_what_schedule_free_optimizers_void_is_said(library: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        tried(optimizer_type=f"{library}.AdamWScheduleFree", lr_scheduler="cosine", lr_warmup_steps=5)
    assert [record.message.split(" has")[0] for record in caplog.records] == ["--lr_scheduler cosine", "--lr_warmup_steps 5"]


def test_optimizers_of_one_rate_with_lora_plus_are_a_sentence(library: str) -> None:
    tried(optimizer_type=f"{library}.OneRate")
    with pytest.raises(UserError, match=r"cannot do this training: Setting different lr .*; loraplus_lr_ratio gives two rates"):
        tried(1.0, 4.0, optimizer_type=f"{library}.OneRate")


def test_arguments_that_a_library_swallows_are_rejected(library: str) -> None:
    with pytest.raises(UserError, match=r"d_cof: .* has no such argument .did you mean 'd_coef'"):
        tried(optimizer_type=f"{library}.OneRate", optimizer_args=["d_cof=2.0"])
    tried(optimizer_type=f"{library}.OneRate", optimizer_args=["d_coef=2.0", "momentum=0.9"])


def test_an_optimizer_that_finds_its_rate_is_not_given_a_tiny_factor() -> None:
    for rate, said in ((2e-4, 1), (1.0, 0)):
        wanted = settings(optimizer_type="some.package.Prodigy", learning_rate=rate)
        reported = [one.text for one in voided(wanted, SimpleNamespace(sets_its_rate=False, schedule_free=False))]
        assert len(reported) == said and all("that Prodigy finds by itself" in text for text in reported)


def test_adafactor_is_known_in_every_spelling() -> None:
    assert sets_its_rate("Ada_Factor", {}) and not sets_its_rate("Ada_Factor", {"relative_step": False})


def test_arguments_of_a_schedule_that_does_not_act_are_said(caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("transformers")
    tried(lr_scheduler_args=["min_lr=1e-5"], **ADAFACTOR)
    assert "--lr_scheduler_args min_lr=1e-5 has no effect: Adafactor sets its own rate" in caplog.text
    tried(lr_scheduler="piecewise_constant", lr_scheduler_args=["step_rules='1:5,0.1'"], lr_warmup_steps=3)
    assert "--lr_warmup_steps 3 has no effect: step_rules of piecewise_constant" in caplog.text


def test_a_warm_up_longer_than_the_run_is_said(caplog: pytest.LogCaptureFixture) -> None:
    tried(lr_scheduler="constant_with_warmup", lr_warmup_steps=10, total=30)
    assert not caplog.records
    tried(lr_scheduler="constant_with_warmup", lr_warmup_steps=100)
    assert "the warm-up takes 100 of 10 steps, so the learning rate never gets to 0.001" in caplog.text


def test_a_rate_of_0_is_rejected_before_the_model_is_loaded(project: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert project.refused("zero", learning_rate="0") == 1
    assert project.refused("plus", network_args=["loraplus_lr_ratio=0"]) == 1
    said = capsys.readouterr()
    assert "ERROR: --learning_rate is 0: nothing would be trained" in said.err and "loraplus_lr_ratio=0 would train nothing" in said.err
    assert "Loading DiT" not in said.err and not list((project.folder / "out").glob("**/*.safetensors"))


@pytest.mark.parametrize("module", ["networks.lora_wan", "networks.loha", "networks.lokr"])
def test_a_lora_of_zeros_says_that_nothing_was_learned(
    project: Any, capsys: pytest.CaptureFixture[str], module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job, "watch_for_stop", lambda: None)  # stdin is pytest's
    monkeypatch.setenv(job.JOB_DIR_VARIABLE, str(tmp_path))
    project.train("learned", max_train_steps=1, network_module=module)
    assert "NOTHING WAS LEARNED" not in capsys.readouterr().err
    project.train("nothing", max_train_steps=1, network_module=module, learning_rate="1e-50")
    assert "NOTHING WAS LEARNED: the LoRA is all zeros" in capsys.readouterr().err
    reported = [event.text for event in events.read(tmp_path / events.FILE_NAME) if isinstance(event, events.Warned)]
    assert any(text.startswith("NOTHING WAS LEARNED") for text in reported), "nobody reads the log of a node that went well"


def test_metadata_tells_the_rate_and_schedule_that_acted(project: Any) -> None:
    pytest.importorskip("transformers")
    out: Path = project.train("adafactor", optimizer_type="adafactor", lr_scheduler="cosine", max_train_steps=1)
    about = read_header(out / "cat.safetensors").metadata
    assert (about["ss_learning_rate"], about["ss_lr_scheduler"]) == ("None", "adafactor:0.01")
    out = project.train("class", lr_scheduler_type="StepLR", lr_scheduler_args=["step_size=2"], lr_scheduler="cosine", max_train_steps=1)
    assert read_header(out / "cat.safetensors").metadata["ss_lr_scheduler"] == "StepLR"
