"""Whatever values go in, the argument list that comes out is read back as the same values, here and by musubi-tuner."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from musubi_backend.errors import UserError
from musubi_backend.options.argv import to_argv
from musubi_backend.options.option import Option, steps_or_share
from musubi_backend.options.parser import read
from musubi_backend.options.registry import options_for, tool
from musubi_backend.options.values import default_of

LORA_TOOLS = ("lora_post_hoc_ema", "convert_lora", "merge_lora")
TOOLS = (
    "wan_cache_latents",
    "wan_cache_text_encoder_outputs",
    "wan_train_network",
    "wan_generate_video",
    *LORA_TOOLS,
)
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12).filter("--".__ne__) | st.sampled_from(
    ["--sdpa", "-1", "---", "- b"]
)


def one_value(option: Option, musubi: bool) -> st.SearchStrategy[Any]:
    low, high = option.minimum, option.maximum
    if option.is_switch:
        return st.booleans()
    if option.choices:
        return st.sampled_from([one for one in option.choices if one not in (option.own_choices if musubi else option.unsupported_choices)])
    if option.kind is int:
        return st.integers(None if low is None else int(low), None if high is None else int(high))
    if option.kind is float:
        return st.floats(low, high, allow_nan=False, allow_infinity=False)
    if option.kind is steps_or_share:
        return st.integers(0, 10**6) | st.floats(0, 0.999)
    return TEXT


def any_value(option: Option, musubi: bool) -> st.SearchStrategy[Any]:
    if option.nargs is None:
        return one_value(option, musubi)
    items = one_value(option, musubi)
    if option.kind is str:
        items = items.map(lambda text: text.lstrip("-"))
    size = option.nargs if isinstance(option.nargs, int) else None
    return st.lists(items, min_size=size or 1, max_size=size or 4)


def any_values(name: str, musubi: bool) -> st.SearchStrategy[dict[str, Any]]:
    """Values for options of this backend, or (`musubi`) for all those that musubi-tuner has."""
    known = [option for option in options_for(name).values() if option.name != "config_file"]
    options = [option for option in known if (not option.own if musubi else not option.unsupported)]
    return st.fixed_dictionaries(
        {option.name: any_value(option, musubi) for option in options if option.is_positional},
        optional={option.name: any_value(option, musubi) for option in options if not option.is_positional},
    )


@pytest.mark.parametrize("name", TOOLS)
def test_values_come_back_as_they_went_in(name: str) -> None:
    defaults = {option.name: default_of(option) for option in options_for(name).values()}

    @settings(max_examples=60, deadline=None, database=None)
    @given(any_values(name, musubi=False))
    def round_trip(values: dict[str, Any]) -> None:
        assert vars(read(tool(name), to_argv(name, values))) == {**defaults, **values}

    round_trip()


def musubi_parser(script: dict[str, Any]) -> argparse.ArgumentParser:
    """musubi-tuner's parser of one script, from what was recorded of it."""

    def int_or_float(text: str) -> int | float:
        number = float(text.rstrip("%")) / (100 if text.endswith("%") else 1)
        return int(number) if number >= 1 and number == int(number) else number

    kinds = {"str": str, "int": int, "float": float, "_int_or_float": int_or_float, "Path": str, None: str}
    parser = argparse.ArgumentParser(allow_abbrev=script["allow_abbrev"])
    for flag in script["flags"]:
        if flag["positional"]:
            parser.add_argument(flag["dest"], nargs=flag["nargs"])
            continue
        common = {"dest": flag["dest"], "default": flag["default"]}
        if flag["action"] == "store_true":
            parser.add_argument(*flag["option_strings"], action="store_true", **common)
        else:
            parser.add_argument(*flag["option_strings"], type=kinds[flag["type"]], nargs=flag["nargs"], choices=flag["choices"], **common)
    return parser


@pytest.mark.parametrize("name", TOOLS)
def test_musubi_tuner_reads_the_same_values(name: str, shared: Path) -> None:
    parser = musubi_parser(json.loads((shared / "contracts" / "musubi_cli.json").read_text(encoding="utf-8"))["scripts"][name])
    defaults = {option.name: default_of(option) for option in options_for(name).values() if not option.own}

    @settings(max_examples=60, deadline=None, database=None)
    @given(any_values(name, musubi=True))
    def same(values: dict[str, Any]) -> None:
        assert vars(parser.parse_args(to_argv(name, values))) == {**defaults, **values}

    same()


def test_nothing_that_changes_nothing_is_written() -> None:
    values = {"learning_rate": 2e-6, "sdpa": False, "seed": None, "optimizer_args": [], "network_alpha": 1, "blocks_to_swap": None}
    assert to_argv("wan_train_network", values) == []
    assert to_argv("wan_generate_video", {"video_size": [256, 256]}) == []


def test_the_order_is_the_tables_and_paths_are_text() -> None:
    values = {"network_dim": 8, "dit": Path("a b/c.safetensors"), "sdpa": True, "optimizer_args": ["a=1", "b=2"], "learning_rate": 1e-4}
    assert to_argv("wan_train_network", values) == to_argv("wan_train_network", dict(reversed(values.items())))
    argv = to_argv("wan_train_network", values)
    assert argv[argv.index("--dit") + 1] == str(Path("a b/c.safetensors"))
    assert argv[argv.index("--learning_rate") + 1] == "0.0001"
    assert argv[argv.index("--optimizer_args") + 1 :][:2] == ["a=1", "b=2"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"lerning_rate": 1}, "no option 'lerning_rate'.*did you mean 'learning_rate'"),
        ({"network_dim": "8"}, "--network_dim must be a whole number, not '8'"),
        ({"network_dim": True}, "--network_dim must be a whole number, not True"),
        ({"network_dim": 0}, "--network_dim must be at least 1"),
        ({"learning_rate": float("nan")}, "--learning_rate must be a finite number"),
        ({"sdpa": 1}, "--sdpa must be true or false"),
        ({"mixed_precision": "bf61"}, "--mixed_precision must be one of.*did you mean 'bf16'"),
        ({"optimizer_args": "a=1"}, "--optimizer_args must be a list"),
        ({"optimizer_args": ["-a"]}, "must not begin with '-'"),
        ({"output_name": "a\0b"}, "zero byte"),
        ({"output_name": "--"}, "cannot be '--'"),
    ],
)
def test_values_that_no_command_line_should_carry(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        to_argv("wan_train_network", values)
