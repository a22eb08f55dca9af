"""What a training rejects of optimizer and schedule, or what has no effect, is said at its widget when the prompt is queued."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from musubi_backend.options.registry import options_for
from musubi_backend.options.values import default_of
from musubi_backend.training import schedules
from musubi_backend.training.settings import TrainingSettings

FIXED = "relative_step=False"
MISTAKES: dict[str, tuple[dict[str, Any], str, str]] = {
    "a schedule on Adafactor": ({"lr_scheduler": "cosine"}, "lr_scheduler", "choose constant, or add optimizer_args relative_step=False"),
    "a warm-up on Adafactor": ({"lr_warmup_steps": 9}, "lr_warmup_steps", "lr_warmup_steps cannot act on Adafactor"),
    "relative steps by warmup_init": (
        {"lr_scheduler": "cosine", "optimizer_args": f"{FIXED}\nwarmup_init=True"}, "lr_scheduler", "has no effect",
    ),
    "words without quotes": ({"optimizer_args": "relative_step=yes"}, "optimizer_args", "'yes' is not a number"),
    "a rate of 0": ({"optimizer_type": "adamw", "learning_rate": 0.0}, "learning_rate", "learning_rate is 0: nothing would be trained"),
    "a rate of 0 and a polynomial": (
        {"optimizer_type": "adamw", "learning_rate": 0.0, "lr_scheduler": "polynomial"}, "learning_rate", "nothing would be trained",
    ),
    "no lowest rate": (
        {"optimizer_type": "adamw", "lr_scheduler": "cosine_with_min_lr"}, "lr_scheduler_min_lr_ratio", "needs lr_scheduler_min_lr_ratio",
    ),
    "a polynomial below its end": (
        {"optimizer_type": "adamw", "lr_scheduler": "polynomial", "learning_rate": 1e-8}, "learning_rate", "not below learning_rate",
    ),
    "a fixed rate of 0": ({"optimizer_args": FIXED, "learning_rate": 0.0}, "learning_rate", "nothing would be trained"),
}  # fmt: skip


def config(part: Any, **values: Any) -> dict[str, Any]:
    node = part("nodes.optimizer_settings").OptimizerConfig()
    return {entry.name: values.get(entry.name, entry.default) for entry in node.spec.inputs}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_it_is_at_its_widget(part: Any, mistake: str) -> None:
    values, widget, said = MISTAKES[mistake]
    node = part("nodes.optimizer_settings").OptimizerConfig()
    problems = part("nodes.checks").check(node, SimpleNamespace(), config(part, optimizer_type="adafactor") | values)
    assert [problem.input for problem in problems] == [widget]
    assert said in problems[0].text and "--" not in problems[0].text


def test_settings_that_act_are_taken(part: Any) -> None:
    node, check = part("nodes.optimizer_settings").OptimizerConfig(), part("nodes.checks").check
    for values in (
        {},
        {"optimizer_type": "adafactor"},
        {"optimizer_type": "adafactor", "optimizer_args": FIXED, "lr_scheduler": "cosine", "lr_warmup_steps": 9},
        *({"lr_scheduler": name, "lr_scheduler_min_lr_ratio": 0.1} for name in node.spec.input("lr_scheduler").choices),
    ):
        assert not check(node, SimpleNamespace(), config(part, **values)), values
    assert not check(node, SimpleNamespace(), {"optimizer_type": "adafactor", "lr_scheduler": "cosine"}), "others come over links"


LENGTHS: dict[str, tuple[dict[str, Any], str]] = {
    "only a warm-up": (
        {"optimizer_type": "adamw", "lr_scheduler": "constant_with_warmup", "lr_warmup_steps": 5, "max_train_steps": 1},
        "0 all along (1 step)",
    ),
    "a warm-up and a fall": (
        {"optimizer_type": "adamw", "lr_scheduler": "warmup_stable_decay", "lr_warmup_steps": 50, "lr_decay_steps": 60}, "longer than",
    ),
    "LoRA+ on Adafactor": ({"optimizer_type": "adafactor", "network_args": ["loraplus_lr_ratio=4"]}, "loraplus_lr_ratio=4 cannot act"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", LENGTHS)
def test_the_trainer_knows_the_length_and_the_network(part: Any, mistake: str) -> None:
    values, said = LENGTHS[mistake]
    values = {"max_train_steps": 100, "learning_rate": 1e-4, **values}
    problems = list(part("nodes.rates").problems(values, values["max_train_steps"]))
    assert len(problems) == 1 and said in problems[0].text


def test_what_is_drawn_are_the_rates_of_the_schedule_of_a_training(part: Any) -> None:
    rates, node = part("nodes.rates"), part("nodes.optimizer_settings").OptimizerConfig()
    for name in node.spec.input("lr_scheduler").choices:
        warm = {} if name == "constant" else {"lr_warmup_steps": 7}
        values = node.values(
            config(part, optimizer_type="adamw", learning_rate=0.5, lr_scheduler=name, lr_scheduler_min_lr_ratio=0.1, **warm)
        )
        optimizer = torch.optim.SGD.__new__(torch.optim.SGD)  # all that a schedule asks for; a whole one imports the compiler, for seconds
        optimizer.param_groups = [{"lr": 0.5}]
        settings = TrainingSettings.read({option: default_of(one) for option, one in options_for("wan_train_network").items()} | values)
        schedule, real = schedules.build(settings.schedule, optimizer, 40, schedule_free=False), []
        for _ in range(40):
            real.append(schedule.get_last_lr()[0])
            optimizer._opt_called = True
            schedule.step()
        assert rates.curve(values, 40) == ([(step + 1, pytest.approx(rate)) for step, rate in enumerate(real)], ""), name
    steps = [step for step, _ in rates.curve(values, 10_000)[0]]
    assert len(steps) == 200 and (steps[0], steps[-1]) == (1, 10_000)


def test_optimizers_with_a_rate_of_their_own_are_said(part: Any) -> None:
    schedule = part("nodes.optimizer_settings").schedule
    assert schedule(None, {"optimizer_type": "adafactor"}, 10) == {"rates": [], "note": "this optimizer sets its own learning rate"}
    free = schedule(None, {"optimizer_type": "AdamWScheduleFree", "learning_rate": 0.1}, 10)
    assert free["note"] == "schedule-free: the rate stays" and {rate for _, rate in free["rates"]} == {0.1}
    refused = part("backend.musubi_backend.errors").UserError
    for values, steps in (({"lr_scheduler": "no"}, 10), ([], 10), ({}, 0), ({}, "x"), ({"optimizer_args": "import os"}, 10)):
        with pytest.raises(refused):
            schedule(None, values, steps)


def test_a_preset_is_arguments_that_single_lines_override(part: Any) -> None:
    node = part("nodes.optimizer_settings").OptimizerConfig()
    chosen = {"optimizer_type": "HinaAdamW", "optimizer_preset": "HinaAdamW: SD", "optimizer_args": "alora_ratio=4"}
    values = node.values(config(part, **chosen))
    assert values["optimizer_args"][0] == "spd_lambda=0.06" and values["optimizer_args"][-1] == "alora_ratio=4"
    assert sum(line.startswith("alora_ratio") for line in values["optimizer_args"]) == 1
    assert "optimizer_args" not in node.values(config(part))
    presets = part("nodes.optimizer_settings").PRESETS
    for name, (entry, _) in presets.items():
        assert not part("nodes.checks").check(node, SimpleNamespace(), config(part, optimizer_type=entry.name, optimizer_preset=name)), name
    assert len(presets) >= 7
