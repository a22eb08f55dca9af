"""What saves memory while training changes nothing it should not: block swapping not a bit, fp8 weights little."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest


@pytest.mark.parametrize("checkpointing", [False, True])
def test_swapping_blocks_changes_no_bit(project: Any, same: SimpleNamespace, checkpointing: bool) -> None:
    flags = ["--gradient_checkpointing"] if checkpointing else []
    project.train("plain", *flags, max_train_steps=4)
    project.train("swapped", *flags, "--use_pinned_memory_for_block_swap", max_train_steps=4, blocks_to_swap=1, block_swap_ring_size=1)
    assert same.bits(project.lora("swapped"), project.lora("plain"))


def test_weights_in_8_bits_train_nearly_the_same_lora(project: Any, same: SimpleNamespace) -> None:
    project.train("plain", max_train_steps=4)
    for out, flags in (("fp8", ["--fp8_base"]), ("scaled", ["--fp8_base", "--fp8_scaled"]), ("products", ["--w8a8", "int8"])):
        project.train(out, *flags, max_train_steps=4)
        assert 0 < same.difference(project.lora(out), project.lora("plain")) < 0.1
    assert not same.bits(project.lora("fp8"), project.lora("scaled"))
    flags = ["--w8a8", "int8", "--gradient_checkpointing", "--gradient_checkpointing_cpu_offload"]
    project.train("swapped", *flags, max_train_steps=4, blocks_to_swap=1, keep_attention_blocks=1)
    assert same.bits(project.lora("swapped"), project.lora("products"))


def test_everything_at_once(project: Any, same: SimpleNamespace) -> None:
    """fp8, swapped, checkpointed with inputs in system RAM, as on the smallest GPU; the same as fp8 alone."""
    project.train("scaled", "--fp8_base", "--fp8_scaled", max_train_steps=4)
    flags = ["--fp8_base", "--fp8_scaled", "--gradient_checkpointing", "--gradient_checkpointing_cpu_offload", "--block_swap_h2d_only"]
    project.train("small", *flags, max_train_steps=4, blocks_to_swap=1)
    assert same.difference(project.lora("small"), project.lora("scaled")) < 1e-5


def test_scaled_fp8_wants_both_flags(project: Any, capfd: pytest.CaptureFixture[str]) -> None:
    assert project.refused("out", "--fp8_scaled") == 1
    assert "--fp8_scaled needs --fp8_base" in capfd.readouterr().err


@pytest.mark.slow
def test_compiled_blocks_train_the_same_lora(project: Any, same: SimpleNamespace) -> None:
    """With the backend that only traces, and all that saves memory; gradients by compilers are compared where blocks are compiled without a
    training."""
    from torch._dynamo.utils import counters

    saving = ["--fp8_base", "--fp8_scaled", "--gradient_checkpointing"]
    project.train("plain", *saving, max_train_steps=2)
    counters.clear()
    project.train("compiled", *saving, max_train_steps=2, blocks_to_swap=1, dynamo_backend="EAGER", keep_attention_blocks=1)
    assert counters["stats"]["unique_graphs"] > 0
    assert same.difference(project.lora("compiled"), project.lora("plain")) < 1e-4


def test_compiling_swapped_blocks_wants_checkpointing(project: Any, capfd: pytest.CaptureFixture[str]) -> None:
    assert project.refused("out", "--compile", blocks_to_swap=1) == 1
    assert "--blocks_to_swap with --compile needs --gradient_checkpointing" in capfd.readouterr().err
