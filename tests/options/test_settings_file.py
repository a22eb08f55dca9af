"""--config_file: musubi-tuner's settings file, with the mistakes pointed out."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from musubi_backend.errors import UserError
from musubi_backend.options.parser import read
from musubi_backend.options.registry import tool

TRAIN = tool("wan_train_network")


@pytest.fixture
def settings(tmp_path: Path) -> Path:
    return tmp_path / "my settings.toml"


def test_sections_are_flattened_and_the_command_line_wins(settings: Path) -> None:
    settings.write_text(
        'output_name = "--odd name"\n[optimizer]\nlearning_rate = 1\noptimizer_args = ["weight_decay=0.1"]\nlr_warmup_steps = "10%"\n'
        "[train]\nmax_train_steps = 5\nsdpa = true\nnetwork_dim = 4\n",
        encoding="utf-8",
    )
    args = read(TRAIN, ["--config_file", str(settings), "--network_dim", "16"])
    assert (args.output_name, args.learning_rate, args.optimizer_args) == ("--odd name", 1.0, ["weight_decay=0.1"])
    assert (args.lr_warmup_steps, args.max_train_steps, args.sdpa, args.network_dim) == (0.1, 5, True, 16)
    assert args.max_grad_norm == 1.0


def test_a_value_equal_to_the_default_on_the_command_line_still_wins(settings: Path) -> None:
    settings.write_text("max_train_steps = 5\n", encoding="utf-8")
    assert read(TRAIN, ["--config_file", str(settings), "--max_train_steps", "1600"]).max_train_steps == 1600


def test_the_ending_may_be_left_out_and_a_byte_order_mark_may_be_there(settings: Path) -> None:
    settings.write_text("seed = 7\n", encoding="utf-8-sig")
    assert read(TRAIN, ["--config_file", str(settings.with_suffix(""))]).seed == 7


def test_every_mistake_is_named_with_its_file_and_key(settings: Path) -> None:
    settings.write_text(
        'lerning_rate = 1.0\nmax_train_steps = "many"\nsdpa = 1\nseed = 1.5\noptimizer_args = "a=1"\nmixed_precision = "bf"\n'
        'network_dim = 0\nconfig_file = "other"\n[a.b]\nc = 1\n',
        encoding="utf-8",
    )
    with pytest.raises(UserError) as error:
        read(TRAIN, ["--config_file", str(settings)])
    message = str(error.value)
    for expected in (
        str(settings),
        "lerning_rate is not an option of any tool (did you mean 'learning_rate'?)",
        "max_train_steps must be a whole number, not 'many'",
        "sdpa must be true or false, not 1",
        "seed must be a whole number, not 1.5",
        "optimizer_args must be a list of values, not 'a=1'",
        "mixed_precision must be one of no, fp16, bf16, auto",
        "network_dim must be at least 1, not 0",
        "cannot name another",
        "b is not an option",
    ):
        assert expected in message


def test_a_key_of_another_tool_is_mentioned_and_skipped(settings: Path, caplog: pytest.LogCaptureFixture) -> None:
    settings.write_text("infer_steps = 20\n", encoding="utf-8")
    with caplog.at_level(logging.INFO):
        args = read(TRAIN, ["--config_file", str(settings)])
    assert not hasattr(args, "infer_steps")
    assert "infer_steps is not an option of wan_train_network" in caplog.text


def test_rejected_settings_are_rejected_from_a_file_too(settings: Path) -> None:
    settings.write_text("sage_attn = true\nblocks_to_swap = 0\n", encoding="utf-8")
    with pytest.raises(UserError, match="--sage_attn is not supported") as error:
        read(TRAIN, ["--config_file", str(settings)])
    assert "blocks_to_swap" not in str(error.value)


@pytest.mark.parametrize(("content", "message"), [(b"seed = = 1", "cannot be read.*line 1"), (b"\xff\xfe\x00", "cannot be read")])
def test_a_broken_file_is_named(settings: Path, content: bytes, message: str) -> None:
    settings.write_bytes(content)
    with pytest.raises(UserError, match=message):
        read(TRAIN, ["--config_file", str(settings)])


def test_a_missing_file_is_named(settings: Path) -> None:
    with pytest.raises(UserError, match=r"my settings\.toml does not exist"):
        read(TRAIN, ["--config_file", str(settings)])
