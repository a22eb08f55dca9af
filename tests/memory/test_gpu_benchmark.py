"""The benchmark of GPUs, with its smallest shapes on the CPU: what it says is right, whole at any time, and wrong where a step is."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from musubi_backend.memory import streaming

sys.path.insert(0, str(Path(__file__).parents[2]))
from benchmarks import gpu, gpu_measure
from benchmarks.gpu_models import IMAGE, LONG, MODELS, SMALL, SMALLEST, Setting, build

CPU = gpu.pick_device("cpu")


@pytest.fixture
def results(tmp_path: Path) -> gpu.Results:
    return gpu.Results(tmp_path, {"device": "CPU"})


def test_every_way_of_saving_memory_gives_the_gradients_of_the_plain_step(results: gpu.Results) -> None:
    for model in SMALL:
        gpu.check(results, model, SMALLEST, CPU, gpu.torch.float32, gpu.Clock(600))
    assert {row["right"] for row in results.checks} == {"yes"}, results.checks
    assert len({(row["model"], row["setting"]) for row in results.checks}) == 30
    eight_bits = [row for row in results.checks if row["setting"] == "fp8 scaled"]
    assert all(0 < row["distance"] < 0.2 for row in eight_bits)
    assert sum("needs triton" in line for line in results.left_out) == 9


def _zeros(buffer: Any) -> None:
    buffer.zero_()


def test_a_wrong_step_is_called_wrong(results: gpu.Results, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming._Transfers, "_copy", lambda self, memory, buffer, done: _zeros(buffer))
    monkeypatch.setattr(gpu, "CHECKS", (gpu.Check(Setting(blocks_to_swap=1), gpu.BITS),))
    gpu.check(results, SMALL[0], SMALLEST, CPU, gpu.torch.float32, gpu.Clock(600))
    gpu.check(results, SMALL[0], SMALLEST, CPU, gpu.torch.float32, gpu.Clock(-1))
    kept = json.loads((results.folder / "gpu.json").read_text(encoding="utf-8"))
    assert [row["right"] for row in kept["checks"]] == ["NO"] and kept["left_out"] == ["small Wan 64x64x5, swap 1: no time"]
    assert "| right |" in (results.folder / "gpu.md").read_text(encoding="utf-8")


def test_a_step_is_measured(results: gpu.Results) -> None:
    assert gpu.measure(results, SMALL[0], Setting(blocks_to_swap=1, checkpointing=True), SMALLEST, CPU, 0.01)
    (row,) = results.steps
    trained = build(SMALL[0], Setting(blocks_to_swap=1), CPU)
    assert row["seconds"] > 0 and row["copied_gb"] >= len(trained.streams[0].packed[0].memory) / 1e9


def test_a_configuration_that_fails_costs_only_itself(results: gpu.Results) -> None:
    assert not gpu.measure(results, SMALL[0], Setting(blocks_to_swap=99), SMALLEST, CPU, 0.01)
    assert "at most 2" in results.steps[0]["error"]


def test_operations_are_those_of_the_formula() -> None:
    """spec: forward products, once more for the gradient of their input, attention three times; the text's share and LoRA left aside."""
    wan: Any = MODELS[0]
    for size, tera in ((IMAGE, 6.6), (LONG, 774)):  # of 512 text tokens, of which we leave out the padding, and a LoRA
        assert 0.88 < gpu_measure.operations(wan, size) / 1e12 / tera < 1


def test_spans_of_time_overlap() -> None:
    joined = gpu_measure._joined([(5, 7), (0, 2), (1, 3)])
    assert joined == [(0, 3), (5, 7)]
    assert gpu_measure._overlap((2, 6), joined) == 2
