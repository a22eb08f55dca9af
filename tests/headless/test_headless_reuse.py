"""A kept result counts only while the files it stands for hold what it left in them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest


def test_a_result_counts_until_one_of_its_files_changes_or_goes(part: Any, tmp_path: Path) -> None:
    store, result = part("headless.run").ResultStore, part("nodes.spec").Result
    lora = tmp_path / "猫.safetensors"
    lora.write_bytes(b"first")
    store(tmp_path).put("key", result(("猫",), "text", files=(lora,)))
    assert store(tmp_path).get("key").files == (lora,)

    os.utime(lora, ns=(1, 1))  # as when another training wrote its LoRA under the same name
    assert store(tmp_path).get("key") is None
    store(tmp_path).put("key", result(("猫",), "text", files=(lora,)))
    lora.unlink()
    assert store(tmp_path).get("key") is None


def test_a_lora_that_was_trained_anew_under_its_name_makes_another_video(part: Any, tmp_path: Path) -> None:
    node, host = part("nodes.catalog").BY_NAME["WanVideoGenerator"](), part("headless.terminal").TerminalHost(tmp_path)
    lora = host.loras_dir() / "musubi_tuner" / "dog.safetensors"
    lora.parent.mkdir(parents=True)
    lora.write_bytes(b"first")
    chosen = {"lora_1": "musubi_tuner/dog.safetensors", "lora_2": "none"}
    before = node.fingerprint(host, **chosen)
    assert node.fingerprint(host, **chosen) == before
    lora.write_bytes(b"second")
    assert node.fingerprint(host, **chosen) != before


@pytest.mark.parametrize("name", ["../dit.safetensors", "a/../../dit.safetensors", "/dit.safetensors", "..\\dit.safetensors"])
def test_a_model_name_cannot_leave_its_folder(part: Any, tmp_path: Path, name: str) -> None:
    (tmp_path / "models" / "vae" / "a").mkdir(parents=True)
    (tmp_path / "models" / "dit.safetensors").write_bytes(b"x")
    host = part("headless.terminal").TerminalHost(tmp_path)
    with pytest.raises(part("backend.musubi_backend.errors").UserError):
        host.model_path("vae", name)
