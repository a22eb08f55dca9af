"""Optimizers are found by name, get their arguments as literals, and say what is wrong with a name or an argument."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from musubi_backend.errors import UserError
from musubi_backend.training import optimizers, schedules
from musubi_backend.training.settings import ScheduleSettings, TrainingSettings
from musubi_backend.training.voided import Acting, in_effect


def choose(kind: str, *arguments: str) -> tuple[optimizers.Choice, TrainingSettings]:
    settings = TrainingSettings.read({"optimizer_type": kind, "optimizer_args": list(arguments), "learning_rate": 1e-3})
    parameter = torch.nn.Parameter(torch.ones(3))
    return optimizers.build(settings.optimizer, 1e-3, [{"params": [parameter], "lr": 1e-3}]), settings


def test_adamw_in_any_case_with_literal_arguments() -> None:
    chosen, _ = choose("adamw", "weight_decay=0.01", "betas=(0.9, 0.95)")
    group = chosen.optimizer.param_groups[0]
    assert group["weight_decay"] == 0.01 and group["betas"] == (0.9, 0.95)
    assert chosen.recorded == "torch.optim.adamw.AdamW(weight_decay=0.01,betas=(0.9, 0.95))"
    assert choose("AdamW")[0].recorded == "torch.optim.adamw.AdamW"


def test_adamw_does_its_step_in_one_kernel_unless_asked_otherwise() -> None:
    assert choose("adamw")[0].optimizer.defaults["fused"]
    for asked in ("foreach=True", "foreach=False", "fused=False", "amsgrad=True", "capturable=False", "differentiable=True"):
        name, _, value = asked.partition("=")
        defaults = choose("adamw", asked)[0].optimizer.defaults
        assert not defaults["fused"] and str(defaults[name]) == value


def test_torch_names_and_dotted_paths() -> None:
    assert isinstance(choose("SGD", "momentum=0.9")[0].optimizer, torch.optim.SGD)
    assert isinstance(choose("torch.optim.RAdam")[0].optimizer, torch.optim.RAdam)


def test_adafactor_with_relative_step_takes_over_rate_and_schedule() -> None:
    pytest.importorskip("transformers")
    chosen, settings = choose("adafactor")
    acting = in_effect(settings, chosen)
    assert acting.learning_rate is None and acting.schedule.lr_scheduler == "adafactor:0.001"
    assert chosen.recorded == "transformers.optimization.Adafactor(relative_step=True)"
    schedule = schedules.build(acting.schedule, chosen.optimizer, 10, schedule_free=False)
    assert schedule.get_last_lr() == [0.001]
    fixed, settings = choose("Adafactor", "relative_step=False", "scale_parameter=False", "warmup_init=False")
    assert in_effect(settings, fixed) == Acting(1e-3, settings.schedule) and not fixed.optimizer.param_groups[0]["relative_step"]


def test_schedule_free_optimizers_keep_their_rate() -> None:
    class ScheduleFreeAdagrad(torch.optim.SGD):
        mode = "train"

        def train(self) -> None:
            self.mode = "train"

        def eval(self) -> None:
            self.mode = "eval"

    setattr(torch.optim, "ScheduleFreeAdagrad", ScheduleFreeAdagrad)  # noqa: B010
    try:
        chosen, _ = choose("ScheduleFreeAdagrad")
    finally:
        delattr(torch.optim, "ScheduleFreeAdagrad")
    assert chosen.schedule_free
    chosen.eval()
    assert isinstance(chosen.optimizer, ScheduleFreeAdagrad) and chosen.optimizer.mode == "eval"
    schedule = schedules.build(ScheduleSettings(), chosen.optimizer, 10, chosen.schedule_free)
    schedule.step()
    assert schedule.get_last_lr() == [1e-3]


@pytest.mark.parametrize(
    ("kind", "arguments", "words"),
    [
        ("", (), "--optimizer_type is not set"),
        ("AdamWW", (), "did you mean .AdamW"),
        ("prodigyopt_missing.Prodigy", (), "cannot import prodigyopt_missing"),
        ("torch.optim.Adamm", (), "did you mean .Adam"),
        ("adamw", ("betas",), "key=value"),
        ("adamw", ("momentum=0.9",), "momentum"),
        ("adamw", ("weight_decay=__import__('os')",), "is not a number"),
        ("adamw", ("weight_decay=-1",), "weight_decay"),
        ("adamw", (f"weight_decay=1{'0' * 400}",), "it is a number"),
        ("adamw", ("weight_decay=1e400",), "it is a number"),
        ("adamw", (f"weight_decay={'-' * 100_000}1",), "is not a number"),
    ],
)
def test_mistakes_are_named(kind: str, arguments: tuple[str, ...], words: str) -> None:
    with pytest.raises(UserError, match=words):
        choose(kind, *arguments)


@pytest.mark.parametrize(
    ("kind", "package"),
    [("AdamW8bit", "bitsandbytes"), ("lion", "pytorch_optimizer"), ("ProdigyPlus", "prodigyplus"), ("adamw_adv", "adv_optm")],
)
def test_a_missing_package_is_named_with_what_installs_it(kind: str, package: str) -> None:
    if importlib.util.find_spec(package) is not None:
        pytest.skip(f"{package} is installed")
    with pytest.raises(UserError, match=f"needs the package {package}.*install.py --with optimizers"):
        choose(kind)
