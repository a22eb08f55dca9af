"""Two processes train one LoRA, on one device: swapping, checkpointing, spreading the weights and resuming change no bit of what they learn
together."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from contract_bench import assert_kept, lora_in
from contract_models import FAMILIES
from contract_table import BITS, TRAINING, Cell, row

RANK = Path(__file__).with_name("contract_rank.py")
BACKEND = Path(__file__).resolve().parents[2] / "backend"
MINUTES = 30  # only a deadlock takes them


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    metafunc.parametrize("name", list(FAMILIES) if metafunc.config.getoption("--full", False) else ["wan"])


@pytest.mark.slow
@pytest.mark.full(reason="training/test_distributed resumes two processes to the same bits")
def test_two_processes_resume_with_less_memory_to_the_same_bits(name: str, bench: Any) -> None:
    pytest.importorskip("accelerate")
    if bench.simulated:
        pytest.skip("a simulated GPU is of one process")
    small = row(TRAINING, "checkpointing offload" if FAMILIES[name].experts else "swap pinned ring 1 checkpointing")
    plain, saving = (Cell(name, "auto", setting, "straight") for setting in (row(TRAINING, "plain"), small))
    whole = together(bench, plain, "--save_every_n_steps", "1", "--save_state")
    state = str(whole / "lora-step00000001-state")
    assert_kept(lora_in(together(bench, saving, "--resume", state)), lora_in(whole), BITS)
    if not FAMILIES[name].experts:
        spread = together(bench, plain, "--resume", state, "--fsdp", "--gradient_checkpointing")
        assert_kept(lora_in(spread), lora_in(whole), BITS)


def together(bench: Any, cell: Cell, *more: str) -> Path:
    """Two processes train a cell. Returns the output folder."""
    out = bench.new_folder()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    environment = {**os.environ, **group, "PYTHONPATH": str(BACKEND), "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, str(RANK), *bench.words(cell, out, *more)],
            env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank if bench.device == "cpu" else 0)},
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, encoding="utf-8",
        )
        for rank in range(2)
    ]  # fmt: skip
    said = [process.communicate(timeout=60 * MINUTES)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "\n".join(said)
    assert f"accelerator device: {bench.device}" in said[0] and "accelerator device" not in said[1], "only one process reports"
    return out
