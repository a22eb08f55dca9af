"""Two processes train one LoRA: they share the batches, average their gradients, and resume together."""

from __future__ import annotations

import re
import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from musubi_backend.training.distributed import share
from musubi_backend.weights.safetensors_file import read_header

pytest.importorskip("accelerate")


def test_batches_are_shared_evenly_and_none_is_left_out() -> None:
    assert share(list("abcde"), 0, 2) == ["a", "c", "e"] and share(list("abcde"), 1, 2) == ["b", "d", "a"]
    assert share(list("ab"), 2, 3) == ["a"]
    assert share([1, 2, 3], 0, 1) == [1, 2, 3]


def train_together(project: Any, out: str, count: int, **values: Any) -> Path:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
    processes = [
        project.start(out, "--save_state", environment={**group, "RANK": str(rank), "LOCAL_RANK": str(rank)}, **values)
        for rank in range(count)
    ]
    texts = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * count, "\n".join(texts)
    assert "running training" in texts[0] and "running training" not in texts[1], "only one process reports"
    assert "num batches per epoch / 1epochのバッチ数: 2" in texts[0] and "validation loss" not in texts[1]
    print(texts[0])
    return project.folder / "out" / out


@pytest.mark.slow
def test_two_processes_train_and_resume_to_the_same_bits_with_a_seed_nobody_chose(
    project: Any, same: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each would draw a seed of its own, and drop LoRA modules of its own; then their LoRAs would start, and continue, apart from
    each other, and the state, which is the first one's, would lead elsewhere."""
    settings = {"max_train_steps": 6, "save_every_n_steps": 3, "network_args": ["module_dropout=0.4"], "validation_split": 0.3}
    whole = train_together(project, "whole", 2, seed=None, **settings)
    seed = read_header(whole / "cat.safetensors").metadata["ss_seed"]
    train_together(project, "rest", 2, resume=whole / "cat-step00000003-state", seed=seed, **settings)
    assert same.bits(project.lora("rest"), project.lora("whole"))
    project.train("alone", seed=seed, **settings)
    assert not same.bits(project.lora("alone"), project.lora("whole"))
    printed = "".join(capsys.readouterr())
    before = re.findall(r"validation loss after step 0: (\S+),", printed)
    assert len(before) == 2 and before[0] == before[1], "two processes measure what one does"
    assert len(re.findall("validation loss after step 6: ", printed)) == 3
