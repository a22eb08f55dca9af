"""Prompt lines and files: every option, every default, and errors that say where."""

from __future__ import annotations

import json
import string
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from musubi_backend.architectures.protocol import load as architecture
from musubi_backend.architectures.wan.card import CARD, NEGATIVE_PROMPT
from musubi_backend.errors import UserError
from musubi_backend.inference.prompts import GENERATE_OPTIONS, TRAINING_OPTIONS, parse_line, read_lines, training_prompts

TASK = CARD.task("t2v-1.3B")
WAN = architecture("wan").configured({"task": TASK.name})


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("a dog", {"prompt": "a dog"}),
        ("a dog --w 832 --h 480 --f 81", {"prompt": "a dog", "width": 832, "height": 480, "frame_count": 81}),
        ("a dog --D 7 --S 20", {"prompt": "a dog", "seed": 7, "sample_steps": 20}),
        ("a dog --g 1.5 --fs 3 --l 4", {"prompt": "a dog", "guidance_scale": 1.5, "discrete_flow_shift": 3.0, "cfg_scale": 4.0}),
        ("a dog --n ugly, blurry-dark --w 64", {"prompt": "a dog", "negative_prompt": "ugly, blurry-dark", "width": 64}),
        ("a dog --n", {"prompt": "a dog", "negative_prompt": ""}),
        ("well--known dog, 3-legged --d 1 --d 2", {"prompt": "well--known dog, 3-legged", "seed": 2}),
        ("I am w 512 pixels", {"prompt": "I am w 512 pixels"}),
        ("犬が走る --w 256", {"prompt": "犬が走る", "width": 256}),
    ],
)
def test_training_lines(line: str, expected: dict[str, Any]) -> None:
    assert parse_line(line, TRAINING_OPTIONS, "here") == expected


def test_generate_reads_g_and_l_as_the_same_setting_and_the_last_counts() -> None:
    assert parse_line("a --g 3 --l 4", GENERATE_OPTIONS, "here") == {"prompt": "a", "guidance_scale": 4.0}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("a --x 3", r'p.txt line 1: unknown option "--x"; known are --w --h'),
        ("a --w wide", r'p.txt line 1: --w: "wide" is not a whole number'),
        ("a --w", r'--w: "" is not a whole number'),
        ("a --w 256px", r'--w: "256px"'),
        ("a --w 8", r"--w: 8 is out of range; it must be from 16 to 8192"),
        ("a --s 0", r"--s: 0 is out of range; it must be from 1 to 1000"),
        ("a --s 1001", r"--s: 1001 is out of range"),
        ("a --d -1", r"--d: -1 is out of range"),
        ("a --g nan", r"--g: nan is out of range; it must be at least 0"),
        ("--w 256 a", r"p.txt line 1: starts with an option"),
    ],
)
@pytest.mark.parametrize("options", [TRAINING_OPTIONS, GENERATE_OPTIONS], ids=["training", "generate"])
def test_bad_lines_name_the_place_and_the_option(line: str, message: str, options: Any) -> None:
    with pytest.raises(UserError, match=message):
        parse_line(line, options, "p.txt line 1")


VALUES = {
    "w": st.integers(16, 8192),
    "h": st.integers(16, 8192),
    "f": st.integers(1, 10000),
    "d": st.integers(0, 2**64 - 1),
    "s": st.integers(1, 1000),
    "g": st.floats(0, 100),
    "fs": st.floats(0.01, 100),
    "l": st.floats(0, 100),
    "n": st.text(string.ascii_letters + " ,.", min_size=1).map(str.strip).filter(bool),
}


@given(st.data(), st.text(string.ascii_letters + " ,.()-", min_size=1).map(str.strip).filter(lambda text: text and "--" not in text))
def test_what_is_written_is_what_is_read(data: st.DataObject, prompt: str) -> None:
    chosen = data.draw(st.lists(st.sampled_from(sorted(VALUES)), unique=True))
    values = {name: data.draw(VALUES[name]) for name in chosen}
    line = " ".join([prompt, *(f"--{name} {value}" for name, value in values.items())])
    expected = {"prompt": prompt, **{TRAINING_OPTIONS[name].key: value for name, value in values.items()}}
    assert parse_line(line, TRAINING_OPTIONS, "here") == expected


@given(st.text())
def test_any_text_is_read_or_rejected_but_never_crashes(line: str) -> None:
    try:
        assert "prompt" in parse_line(line, TRAINING_OPTIONS, "here")
    except UserError as error:
        assert str(error).startswith("here")


def test_training_defaults(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("# comment\n\n  a dog\nb --w 250 --h 70 --f 8 --l 1 --d 3 --g 2.5\n", encoding="utf-8")
    first, second = training_prompts(file, WAN)
    assert (first.request.width, first.request.height, first.request.frames, first.request.steps) == (256, 256, 1, 20)
    assert (first.request.flow_shift, first.request.guidance.scale, first.request.embedded_guidance) == (14.5, TASK.guidance_scale, None)
    assert first.request.negative_prompt == NEGATIVE_PROMPT
    assert not first.seed_given
    assert (second.request.width, second.request.height, second.request.frames) == (240, 64, 5)  # floored
    assert (second.index, second.request.seed, second.seed_given) == (1, 3, True)
    assert (second.request.guidance.scale, second.request.embedded_guidance) == (1.0, 2.5)
    assert not second.request.guidance.needs_negative


def test_toml_and_json_say_the_same(tmp_path: Path) -> None:
    toml, as_json, text = tmp_path / "p.toml", tmp_path / "p.json", tmp_path / "p.txt"
    toml.write_text(
        '[prompt]\nwidth = 64\nheight = 32\nsample_steps = 4\nseed = 1\n[[prompt.subset]]\nprompt = "a"\n'
        '[[prompt.subset]]\nprompt = "b"\nseed = 2\ncfg_scale = 3\nnegative_prompt = "n"\n',
        encoding="utf-8",
    )
    first = {"prompt": "a", "width": 64, "height": 32, "sample_steps": 4, "seed": 1, "enum": 0}
    as_json.write_text(json.dumps([first, "b --w 64 --h 32 --s 4 --d 2 --l 3 --n n"]), encoding="utf-8")
    text.write_text("a --w 64 --h 32 --s 4 --d 1\nb --w 64 --h 32 --s 4 --d 2 --l 3 --n n\n", encoding="utf-8")
    assert training_prompts(toml, WAN) == training_prompts(as_json, WAN) == training_prompts(text, WAN)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.txt", "", "no prompts in this file"),
        ("p.csv", "a", "end in .txt, .toml or .json"),
        ("p.json", "[1", "line 1: not valid JSON"),
        ("p.json", "{}", "expected a list of prompts"),
        ("p.json", "[3]", "prompt 1: expected a line of text or a table, found int"),
        ("p.json", '[{"prompt": "a", "widht": 64}]', 'prompt 1: unknown key "widht"; known are width'),
        ("p.json", '[{"prompt": "a", "width": "64"}]', "prompt 1: width: '64' is not a whole number"),
        ("p.json", '[{"prompt": "a", "width": 64.5}]', "prompt 1: width"),
        ("p.json", '[{"prompt": ["a"]}]', "prompt 1: prompt"),
        ("p.toml", "[prompt\n", "not valid TOML"),
        ("p.toml", "[prompts]\n", r"expected a \[prompt\] table"),
        ("p.txt", "a\nb --q 1\nc\nd --w x", r"(?s)line 2: unknown option.*line 4: --w"),
    ],
)
def test_bad_files_say_what_and_where(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=message):
        training_prompts(tmp_path / name, WAN)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such prompt file"):
        read_lines(tmp_path / "missing.txt")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    with pytest.raises(UserError, match="not UTF-8 text"):
        read_lines(tmp_path / "latin.txt")


def test_a_byte_order_mark_is_not_part_of_the_prompt(tmp_path: Path) -> None:
    (tmp_path / "bom.txt").write_bytes(b"\xef\xbb\xbfa dog\r\n# no\r\nb\r\n")
    assert read_lines(tmp_path / "bom.txt") == [(1, "a dog"), (3, "b")]
