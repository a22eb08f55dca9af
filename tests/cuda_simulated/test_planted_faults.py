"""A fault that only a GPU would show is found on the simulated one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

Gpu = Callable[..., Any]

SAID = {
    "a weight left in system RAM": "same device",
    "an input of another dtype": "same dtype",
    "gradients that the scaler rejects": "unscale FP16 gradients",  # wan22's files are in fp16
    "noise of the CPU's generator": "same device",
}


@pytest.mark.parametrize("fault", SAID)
def test_pytorch_rejects(fault: str, gpu: Gpu) -> None:
    assert SAID[fault] in gpu("planted", fault, "wan22" if "scaler" in fault else "wan")["error"]


def test_a_number_that_is_read_in_the_step_makes_the_host_wait(gpu: Gpu) -> None:
    assert "read: training/loop.py:Loop._loss" in gpu("planted", "a number read in the step", "wan")["waits in steps"]


def test_a_number_that_an_optimizer_reads_makes_the_host_wait(gpu: Gpu) -> None:
    assert gpu("reading_optimizer")["waits"] == ["read: elsewhere"]


@pytest.mark.parametrize(
    ("fault", "pinned", "said"),
    [
        ("an activation that is not waited for", True, "may not have written yet"),
        ("a copy that is not waited for", True, "may not have written yet"),
        ("a copy that does not wait", True, "may still read"),
        ("staging memory filled too early", False, "on the host at memory/streaming.py:_Transfers._copy overwrites"),
    ],
)
def test_a_copy_out_of_order_is_a_race(fault: str, pinned: bool, said: str, gpu: Gpu) -> None:
    assert any(said in race for race in gpu("streamed", 4, 2, 1, pinned, *[fault.startswith("an activation")] * 2, fault)["races"])


def test_memory_freed_while_another_stream_reads_it_is_a_race(gpu: Gpu) -> None:
    (race,) = gpu("freed_while_read", False)["races"]
    assert "was freed" in race
    assert gpu("freed_while_read", True)["races"] == []


@pytest.mark.parametrize("made", [False, True])
def test_pinned_memory_read_before_the_copy_is_done_is_a_race(made: bool, gpu: Gpu) -> None:
    (race,) = gpu("read_on_the_host", False, made)["races"]
    assert "may still write" in race
    assert gpu("read_on_the_host", True, made)["races"] == []


def test_what_makes_the_host_wait_is_seen(gpu: Gpu) -> None:
    waits = gpu("waiting")
    assert waits.pop("none") == 0 and all(waits.values()) and len(waits) == 7, waits


def test_a_product_of_fewer_rows_than_cuda_multiplies_fails(gpu: Gpu) -> None:
    assert "greater than 16" in gpu("few_rows")


def test_a_generator_of_the_cpu_draws_nothing_on_the_gpu(gpu: Gpu) -> None:
    assert "Expected a 'cuda' device type for generator but found 'cpu'" in gpu("cpu_generator")


def test_a_tensor_of_the_gpu_is_no_array(gpu: Gpu) -> None:
    assert "can't convert cuda:0" in gpu("to_numpy")
