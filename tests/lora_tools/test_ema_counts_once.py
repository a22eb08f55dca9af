"""The end of a training that is there under two names counts once in an average; files that do not say their step all count."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from musubi_backend.lora.ema_schedule import counted_once
from musubi_backend.weights.safetensors_file import load, save_atomic


def checkpoint(path: Path, value: float, **metadata: str) -> str:
    save_atomic({"lora_unet_a.lora_up.weight": torch.full((2, 2), value)}, path, {f"ss_{key}": text for key, text in metadata.items()})
    return str(path)


def test_the_end_counts_once(tmp_path: Path, run_tool: Any, capsys: pytest.CaptureFixture[str]) -> None:
    first = checkpoint(tmp_path / "cat-step00000010.safetensors", 0.0, steps="10", session_id="1")
    numbered = checkpoint(tmp_path / "cat-step00000020.safetensors", 1.0, steps="20", session_id="1")
    end = checkpoint(tmp_path / "cat.safetensors", 1.0, steps="20", session_id="1")
    run_tool("lora_post_hoc_ema", first, numbered, end, "--no_sort", "--beta", "0.5", "--output_file", str(tmp_path / "out.safetensors"))
    assert f"{numbered} is the same step as a later file" in capsys.readouterr().out
    assert load(tmp_path / "out.safetensors")["lora_unet_a.lora_up.weight"][0, 0] == 0.5, "not 0.75"


@pytest.mark.parametrize(
    ("one", "other", "kept"),
    [
        ({"ss_steps": "1"}, {"ss_steps": "2"}, [0, 1]),
        ({}, {}, [0, 1]),
        ({"ss_steps": "2"}, {"ss_steps": "2"}, [1]),
        ({"ss_steps": "2", "ss_session_id": "1"}, {"ss_steps": "2", "ss_session_id": "2"}, [0, 1]),
        ({"ss_steps": "2", "sshs_model_hash": "a", "ss_session_id": "1"}, {"ss_steps": "2", "sshs_model_hash": "a"}, [1]),
        ({"ss_steps": "2", "sshs_model_hash": "a"}, {"ss_steps": "2", "sshs_model_hash": "b"}, [0, 1]),
    ],
)
def test_the_same_step_is_reported_by_the_metadata(one: dict[str, str], other: dict[str, str], kept: list[int]) -> None:
    assert counted_once([one, other]) == kept


def test_the_node_takes_the_end_once_and_the_lora_of_a_stop_not_at_all(tmp_path: Path, part: Any) -> None:
    host = part("headless.terminal").TerminalHost(tmp_path)
    run = tmp_path / "runs" / "cat-0123456789abcdef"
    run.mkdir(parents=True)
    for step in (10, 20):
        checkpoint(run / f"cat-step{step:08d}.safetensors", step, steps=str(step))
    checkpoint(run / "cat-step00000013.safetensors", 13, steps="13", saved_by_stop="True")
    checkpoint(run / "cat.safetensors", 20, steps="20")
    found = part("nodes.checkpoints").find(host, "", str(run))
    assert [one.path.name for one in found] == ["cat-step00000010.safetensors", "cat.safetensors"]
