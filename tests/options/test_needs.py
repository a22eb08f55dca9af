"""Settings that do nothing without another one are said or refused, in every tool; no template of ours passes such a pair."""

from __future__ import annotations

import logging
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
from musubi_backend.errors import UserError
from musubi_backend.options.needs import unmet
from musubi_backend.options.option import Option, steps_or_share
from musubi_backend.options.parser import parse
from musubi_backend.options.registry import Tool, tool, tools
from musubi_backend.options.tables.needs import NEEDS, Need
from musubi_backend.options.values import default_of


def every_need() -> list[tuple[Tool, Need]]:
    pairs = [(one, need) for one in tools().values() for need in NEEDS.get(one.verb, ())]
    return [(one, need) for one, need in pairs if need.setting.partition("=")[0] in {option.name for option in one.options}]


def defaults(target: Tool) -> dict[str, Any]:
    return {option.name: default_of(option) for option in target.options}


def another_value(option: Option) -> Any:
    """A value that the option does not have by default."""
    if option.kind is bool:
        return True
    if option.kind in (int, float, steps_or_share):
        value = next(value for value in (0.5, 2, 1, 9, 40) if option.minimum <= value <= option.maximum and value != option.default)  # type: ignore[operator]
        return int(value) if option.kind is int and value != 0.5 else value
    return next((choice for choice in option.choices or () if choice != option.default), "something")


def made_true(target: Tool, values: dict[str, Any], side: str) -> None:
    name, asks, accepted = side.partition("=")
    if asks:
        values[name] = accepted.split(",")[0] if accepted else default_of(target.option(name))
    else:
        values[name] = another_value(target.option(name))


@pytest.mark.parametrize(("target", "need"), every_need(), ids=lambda value: getattr(value, "name", None) or getattr(value, "setting", ""))
def test_each_is_told_alone_and_silent_with_its_partner(target: Tool, need: Need) -> None:
    values = defaults(target)
    made_true(target, values, need.setting)
    partner = need.partners[0]
    name, asks, accepted = partner.partition("=")
    has = name in values
    if asks and not accepted and has:
        values[name] = another_value(target.option(name))
    elif asks and has and str(values[name]) in accepted.split(","):
        values[name] = "none"
    met = name == "architecture" and target.architecture in accepted.split(",")
    told = [sentence for one, sentence in unmet(target, Namespace(**values)) if one is need]
    assert len(told) == (0 if met else 1)
    assert met or need.setting.partition("=")[0] in told[0]
    if has:
        made_true(target, values, partner)
        assert need not in [one for one, _ in unmet(target, Namespace(**values))]


def test_nothing_is_told_of_defaults() -> None:
    for target in tools().values():
        assert list(unmet(target, Namespace(**defaults(target)))) == []


@pytest.fixture
def training(tmp_path: Path) -> list[str]:
    for name in ("dit.safetensors", "data.toml"):
        (tmp_path / name).touch()
    files = ["--dit", str(tmp_path / "dit.safetensors"), "--dataset_config", str(tmp_path / "data.toml"), "--output_dir", str(tmp_path)]
    return [*files, "--output_name", "x", "--network_module", "networks.lora_wan", "--optimizer_type", "AdamW", "--sdpa"]


def test_harmless_ones_are_said_and_train(training: list[str], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        parse("wan_train_network", [*training, "--save_every_n_epochs", "1", "--save_last_n_steps", "30", "--lr_decay_steps", "0.1"])
    assert [record.message for record in caplog.records] == [
        "--save_last_n_steps 30 does nothing alone, it needs --save_every_n_steps: add that, or leave --save_last_n_steps out",
        "--lr_decay_steps 0.1 does nothing alone, it needs --lr_scheduler warmup_stable_decay: add that, or leave --lr_decay_steps out",
    ]


def test_misleading_ones_are_refused_together(training: list[str]) -> None:
    with pytest.raises(UserError) as refused:
        parse("wan_train_network", [*training, "--fp8_scaled", "--sample_every_n_steps", "5", "--dim_from_weights"])
    assert [line.split(":")[0] for line in str(refused.value).splitlines()] == [
        "--dim_from_weights needs --network_weights", "--sample_every_n_steps needs --sample_prompts", "--fp8_scaled needs --fp8_base",
    ]  # fmt: skip


def test_every_number_has_bounds() -> None:
    for target in tools().values():
        for option in target.options:
            if option.kind in (int, float, steps_or_share) and not option.refused and not option.moot:
                assert option.minimum is not None and option.maximum is not None, (target.name, option.flag)


def test_rank_0_is_refused() -> None:
    with pytest.raises(UserError, match="--network_dim: must be at least 1, not 0"):
        parse(tool("wan_train_network").name, ["--network_dim", "0"])
