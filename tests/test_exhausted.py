"""Full memory ends a tool with one message that names settings the tool has and does not use yet."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from musubi_backend import __main__ as program
from musubi_backend import exhausted
from musubi_backend.options.registry import tool as find_tool
from musubi_backend.options.registry import tools


def full(amount: str = "2.00 GiB") -> torch.OutOfMemoryError:
    return torch.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {amount}. GPU 0 has a total capacity of 15.60 GiB")


RAM = RuntimeError("[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: can't allocate memory: you tried to allocate 64 bytes.")


def test_which_errors_mean_full_memory() -> None:
    assert all(exhausted.out_of_memory(error) for error in (full(), RAM, MemoryError(), RuntimeError("HIP out of memory")))
    of_libraries = ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", "cuDNN error: CUDNN_STATUS_ALLOC_FAILED")
    assert all(exhausted.of_gpu(RuntimeError(words)) for words in of_libraries)
    assert not exhausted.out_of_memory(RuntimeError("shapes do not match"))
    assert exhausted.in_words(RuntimeError("shapes do not match"), {}) == ""


def test_a_gpu_that_pytorch_has_no_code_for_is_told_what_to_install() -> None:
    said = exhausted.in_words(RuntimeError("CUDA error: no kernel image is available for execution on the device\nSearch for ..."), {})
    assert said.startswith("the installed PyTorch has no code for this GPU. `python install.py --doctor` says which build")


def test_settings_in_use_are_not_advised() -> None:
    values = {"gradient_checkpointing": True, "fp8_base": False, "blocks_to_swap": 20, "vae_cache_cpu": False}
    said = exhausted.in_words(full(), values)
    assert said.startswith(
        "the GPU's memory is full (2.00 GiB more were needed). Use --fp8_base, more than 20 for --blocks_to_swap, --vae_cache_cpu;"
    )
    assert "gradient_checkpointing" not in said
    assert "Use fewer than 9 for --keep_attention_blocks, --fp8_base" in exhausted.in_words(full(), {**values, "keep_attention_blocks": 9})
    assert "Use steps without --accumulate_by_block, --fp8_base" in exhausted.in_words(full(), {**values, "accumulate_by_block": True})
    assert "fp8_base" not in exhausted.in_words(full(), {**values, "w8a8": "int8"})
    said = exhausted.in_words(RAM, values)
    assert said.startswith("the system's RAM is full (64 bytes more were needed). Use --fp8_base; or fewer frames")
    assert exhausted.in_words(MemoryError(), {}).startswith("the system's RAM is full. Use fewer frames")


def test_the_work_and_its_items_are_named() -> None:
    with pytest.raises(torch.OutOfMemoryError) as raised, exhausted.during("encoding clip.mp4 (832x480, 81 frames)"):
        raise full()
    said = exhausted.in_words(raised.value, {"batch_size": 4})
    assert said.startswith(
        "the GPU's memory is full while encoding clip.mp4 (832x480, 81 frames) (2.00 GiB more were needed). Use --batch_size 1;"
    )
    with pytest.raises(RuntimeError) as other, exhausted.during("encoding clip.mp4"):
        raise RuntimeError("shapes do not match")
    assert not hasattr(other.value, "__notes__")


@pytest.mark.parametrize("name", [*tools()])
def test_only_options_of_the_tool_are_advised(name: str) -> None:
    tool = find_tool(name)
    values = dict.fromkeys((option.name for option in tool.options), None)
    advised = exhausted.savers(values)
    assert all(word.removeprefix("--").split()[0] in values for word in advised.split(", ") if word)
    if tool.verb in ("train", "generate"):
        assert "--blocks_to_swap" in advised and "fp8" in advised


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (full(), "ERROR: the GPU's memory is full (2.00 GiB more were needed). Use --fp8_vl"),
        (type("FailOnRecompileLimitHit", (Exception,), {})("Hard failure"), "ERROR: --compile_fullgraph: a block met more sizes"),
    ],
)
def test_it_is_one_message_without_a_traceback(
    error: Exception, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Any
) -> None:
    def run(_: Any) -> None:
        raise error

    monkeypatch.setattr("musubi_backend.tools.caption.run", run)
    model = tmp_path / "model.safetensors"
    model.touch()
    arguments = ["--image_dir", str(tmp_path), "--model_path", str(model), "--output_format", "text"]
    assert program.main(["caption_images_by_qwen_vl", *arguments]) == 1
    assert said in capsys.readouterr().err
