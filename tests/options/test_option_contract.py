"""The table says of every flag what musubi-tuner's own parser says of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from musubi_backend.options import registry
from musubi_backend.options.option import Option, steps_or_share
from musubi_backend.options.parser import build
from musubi_backend.options.tables.unsupported_tools import UNSUPPORTED_TOOLS
from musubi_backend.options.values import default_of

DONE = (
    "wan_cache_latents", "wan_cache_text_encoder_outputs", "wan_train_network", "wan_generate_video",
    "cache_latents", "cache_text_encoder_outputs", "hv_train_network", "hv_generate_video",
    "fpack_cache_latents", "fpack_cache_text_encoder_outputs", "fpack_train_network", "fpack_generate_video",
)  # fmt: skip
LORA_TOOLS = ("lora_post_hoc_ema", "convert_lora", "merge_lora")
CAPTION = "caption_images_by_qwen_vl"  # its flags: tests/caption
OWN = (
    "combine_lora",
    "extract_lora",
    "demo_models",
    "demo_dataset",
    "video_convert",
    "inspect_dataset",
    "tensorboard",
    "resources",
    "view_dataset",
    "plan_memory",
)

# What differs on purpose. Where musubi-tuner always wants a model or a prompt, ours wants them only when they are used (decoding a
# latent needs neither); its default multiplier of the two older generators is no list, and breaks there when it is used.
NOT_REQUIRED = {
    "hv_generate_video": {"dit", "vae", "text_encoder1", "text_encoder2", "prompt"},
    "fpack_generate_video": {"text_encoder1", "text_encoder2", "image_encoder"},
}
OTHER_DEFAULT = {"hv_generate_video": {"lora_multiplier"}, "fpack_generate_video": {"lora_multiplier"}}

# musubi-tuner gives a Path for one flag and no type (so text) for two; paths are text in all of ours.
KINDS = {"str": str, "int": int, "float": float, "_int_or_float": steps_or_share, "Path": str, None: str}


@pytest.fixture(scope="module")
def contract(shared: Path) -> dict[str, Any]:
    scripts: dict[str, Any] = json.loads((shared / "contracts" / "musubi_cli.json").read_text(encoding="utf-8"))["scripts"]
    return scripts


def as_in_contract(option: Option) -> dict[str, Any]:
    return {
        "option_strings": [option.flag],
        "dest": option.name,
        "nargs": 0 if option.is_switch else option.nargs,
        "default": default_of(option),
        "choices": [choice for choice in option.choices if choice not in option.own_choices] if option.choices else None,
        "required": option.required,
        "action": "store_true" if option.is_switch else "store",
    }


@pytest.mark.parametrize("name", [*DONE, *LORA_TOOLS])
def test_every_flag_is_as_in_musubi_tuner(name: str, contract: dict[str, Any]) -> None:
    theirs = {flag["dest"]: flag for flag in contract[name]["flags"]}
    ours = registry.options_for(name)
    assert {name for name, option in ours.items() if not option.own} == set(theirs)
    for dest, flag in theirs.items():
        mine = as_in_contract(ours[dest])
        wanted = {key: flag[key] for key in mine}
        if dest in NOT_REQUIRED.get(name, ()):
            assert (mine.pop("required"), wanted.pop("required")) == (False, True)
        if dest in OTHER_DEFAULT.get(name, ()):
            assert mine.pop("default") != wanted.pop("default")
        assert mine == wanted, dest
        if "default" in mine:
            assert type(mine["default"]) is type(flag["default"]), dest
        if not ours[dest].is_switch:
            assert ours[dest].kind is KINDS[flag["type"]], dest


@pytest.mark.parametrize("name", [*DONE, *LORA_TOOLS])
def test_the_parser_has_the_flags_of_the_contract(name: str, contract: dict[str, Any]) -> None:
    parser = build(registry.tool(name))
    assert parser.allow_abbrev == contract[name]["allow_abbrev"]
    flags = {string for action in parser._actions for string in action.option_strings} - {"-h", "--help"}
    own = {option.flag for option in registry.options_for(name).values() if option.own}
    assert flags - own == {string for flag in contract[name]["flags"] if not flag["positional"] for string in flag["option_strings"]}


def test_every_tool_of_musubi_tuner_is_done_or_known_as_not_done(contract: dict[str, Any]) -> None:
    assert set(registry.tools()) == {*DONE, *LORA_TOOLS, CAPTION, *OWN}
    assert set(UNSUPPORTED_TOOLS) == set(contract) - {*DONE, *LORA_TOOLS, CAPTION}


def test_every_option_is_explained_and_consistent() -> None:
    for tool in registry.tools().values():
        names = [option.name for option in tool.options]
        assert len(names) == len(set(names)), tool.name
        for option in tool.options:
            assert len(option.help) >= 10 and option.help.endswith((".", '".')), (tool.name, option.flag)
            assert option.unsupported is None or option.advanced, f"{option.flag}: what is rejected need not be in the foreground"
            assert option.nargs is None or option.default is None or isinstance(option.default, tuple)
            assert {*option.unsupported_choices, *option.own_choices} <= set(option.choices or ())
            assert option.path in ("", "file", "folder", "any", "output")
