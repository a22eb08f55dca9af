"""`mixed_precision` auto is our own word: neither accelerate nor musubi-tuner gets to see it, through whatever they are reported it."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from musubi_backend.weights.safetensors_file import load, save_atomic

RECORDER = '#!/bin/sh\nprintf "%s\\n" "$@" > "$(dirname "$0")/words"\n'


@pytest.mark.skipif(os.name != "posix", reason="the recording python is a shell script")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_musubi_tuner_and_accelerate_are_given_what_the_file_is(part: Any, shared: Path, tmp_path: Path, dtype: torch.dtype) -> None:
    python = tmp_path / "python"
    python.write_text(RECORDER)
    python.chmod(0o755)
    (tmp_path / "wan_train_network.py").write_text("")
    registered = {"path": str(tmp_path), "python": str(python)}
    (tmp_path / "config.json").write_text(json.dumps({"interpreter": str(python), "engine": "musubi-tuner", "musubi_tuner": registered}))
    state = load(shared / "golden" / "dit" / "wan21_t2v.dit.safetensors")
    save_atomic({name: tensor.to(dtype) for name, tensor in state.items()}, tmp_path / "dit.safetensors")
    trainer = part("nodes.catalog").BY_NAME["WanLoRATrainer"]()
    values = {"dit": str(tmp_path / "dit.safetensors"), "task": "t2v-1.3B", "mixed_precision": "auto"}
    inputs = {"resume": "auto", "processes": 1, "machines": 1, "sampling": None}
    run, host = part("nodes.runs").Run(tmp_path / "run", "mine"), part("headless.terminal").TerminalHost(tmp_path)

    with pytest.raises(part("backend.musubi_backend.errors").UserError):  # the recorder trains nothing
        begin = part("nodes.training_start").Start()
        task = trainer._task(host, run, values, inputs, begin, "musubi-tuner")
        asyncio.run(trainer._train(host, run, "key", task, begin))

    words = (tmp_path / "words").read_text()
    short = "fp16" if dtype == torch.float16 else "bf16"
    assert "auto" not in words
    assert words.count(f"--mixed_precision\n{short}\n") == 2, "accelerate and musubi-tuner"
