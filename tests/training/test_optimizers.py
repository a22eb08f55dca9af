"""Optimizers are found by name, get their arguments as literals, and say what is wrong with a name or an argument."""

from __future__ import annotations

import importlib.util
from argparse import Namespace
from typing import Any

import pytest
import torch
from musubi_backend.errors import UserError
from musubi_backend.training import optimizers, schedules
from musubi_backend.training.voided import in_effect


def choose(kind: str, *arguments: str, **values: Any) -> tuple[optimizers.Choice, Namespace]:
    values |= {"learning_rate": 1e-3, "lr_scheduler": "constant", "max_grad_norm": 1.0}
    args = Namespace(optimizer_type=kind, optimizer_args=list(arguments), **values)
    parameter = torch.nn.Parameter(torch.ones(3))
    return optimizers.build(args, [{"params": [parameter], "lr": 1e-3}]), args


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
    chosen, args = choose("adafactor", lr_scheduler_type="", lr_scheduler_args=None, lr_warmup_steps=0, network_args=None)
    acting = in_effect(args, chosen)
    assert args.learning_rate == 1e-3 and args.lr_scheduler == "constant", "the settings stay as they were given"
    assert acting.learning_rate is None and acting.lr_scheduler == "adafactor:0.001"
    assert chosen.recorded == "transformers.optimization.Adafactor(relative_step=True)"
    schedule = schedules.build(acting, chosen.optimizer, 10, schedule_free=False)
    assert schedule.get_last_lr() == [0.001]
    fixed, args = choose(
        "Adafactor", "relative_step=False", "scale_parameter=False", "warmup_init=False", lr_scheduler_type="", lr_warmup_steps=0
    )
    assert in_effect(args, fixed) is args and not fixed.optimizer.param_groups[0]["relative_step"]


def test_schedule_free_optimizers_keep_their_rate() -> None:
    class AdamWScheduleFree(torch.optim.SGD):
        mode = "train"

        def train(self) -> None:
            self.mode = "train"

        def eval(self) -> None:
            self.mode = "eval"

    setattr(torch.optim, "AdamWScheduleFree", AdamWScheduleFree)  # noqa: B010
    try:
        chosen, _ = choose("AdamWScheduleFree")
    finally:
        delattr(torch.optim, "AdamWScheduleFree")
    assert chosen.schedule_free
    chosen.eval()
    assert isinstance(chosen.optimizer, AdamWScheduleFree) and chosen.optimizer.mode == "eval"
    schedule = schedules.build(Namespace(), chosen.optimizer, 10, chosen.schedule_free)
    schedule.step()
    assert schedule.get_last_lr() == [1e-3]


@pytest.mark.parametrize(
    ("kind", "arguments", "words"),
    [
        ("", (), "--optimizer_type is not set"),
        ("AdanW", (), "did you mean .AdamW"),
        ("prodigyopt_missing.Prodigy", (), "cannot import prodigyopt_missing"),
        ("torch.optim.Adamm", (), "did you mean .Adam"),
        ("adamw", ("betas",), "key=value"),
        ("adamw", ("momentum=0.9",), "momentum"),
        ("adamw", ("weight_decay=__import__('os')",), "is not a number"),
        ("adamw", ("weight_decay=-1",), "weight_decay"),
    ],
)
def test_mistakes_are_named(kind: str, arguments: tuple[str, ...], words: str) -> None:
    with pytest.raises(UserError, match=words):
        choose(kind, *arguments)


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is not None, reason="bitsandbytes is installed")
def test_eight_bit_without_its_library_says_what_to_install() -> None:
    with pytest.raises(UserError, match="bitsandbytes"):
        choose("AdamW8bit")
