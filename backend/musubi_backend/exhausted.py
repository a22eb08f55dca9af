"""What a machine lacks while a tool works, in words: memory of the GPU, system RAM, versions of compiled blocks, code for its GPU."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping

_SAVERS: tuple[tuple[str, str], ...] = (
    ("batch_size", "--batch_size 1"),
    ("gradient_checkpointing", "--gradient_checkpointing"),
    ("fp8_base", "--fp8_base"),
    ("fp8", "--fp8"),
    ("fp8_scaled", "--fp8_scaled"),
    ("blocks_to_swap", "--blocks_to_swap"),
    ("gradient_checkpointing_cpu_offload", "--gradient_checkpointing_cpu_offload"),
    ("vae_cache_cpu", "--vae_cache_cpu"),
    ("vae_tiling", "--vae_tiling"),
    ("vae_chunk_size", "--vae_chunk_size 32"),
    ("vae_spatial_tile_sample_min_size", "--vae_spatial_tile_sample_min_size 128"),
    ("fp8_t5", "--fp8_t5"),
    ("fp8_llm", "--fp8_llm"),
    ("offload_text_encoder", "--offload_text_encoder"),
    ("fp8_vl", "--fp8_vl"),
)
"""Options that save memory and the words for them, those that cost least time first."""

_SPENDERS = ("keep_attention_blocks", "accumulate_by_block")
"""Options that take memory to save time."""

_WITHOUT_GPU = frozenset(("gradient_checkpointing_cpu_offload", "vae_cache_cpu", "blocks_to_swap", "offload_text_encoder"))
"""They move what is on the GPU into system RAM."""

_ASKED = re.compile(r"[Tt]ried to allocate ([\d.]+ ?[KMGT]i?B|\d+ bytes)")


_FULL = ("out of memory", "can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")


def out_of_memory(error: BaseException) -> bool:
    """Is this the GPU's or the CPU allocator's out-of-memory error, or Python's?"""
    if isinstance(error, MemoryError):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and any(words in text for words in _FULL)


def of_gpu(error: BaseException) -> bool:
    """Is it a GPU's memory that ran out?"""
    text = str(error)
    in_ram = isinstance(error, MemoryError) or "can't allocate memory" in text or "DefaultCPUAllocator" in text
    return not in_ram and out_of_memory(error)


def work_of(error: BaseException) -> str:
    """As in " while encoding clip.mp4", of the innermost `during`; "" without one."""
    return "".join(f" while {work}" for work in getattr(error, "__notes__", [])[:1])


@contextlib.contextmanager
def during(work: str) -> Iterator[None]:
    """Has the message of memory that runs out inside say during what that was. work: as in "encoding clip.mp4"."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if out_of_memory(error):
            vars(error)["__notes__"] = [*getattr(error, "__notes__", []), work]
        raise


def savers(values: Mapping[str, object], *, gpu: bool = True) -> str:
    """What of the tool's own options would save memory and is not in use, as in "--fp8_base, --blocks_to_swap"; "" where it has none.

    values: the tool's options by name, as given. gpu: is it a GPU's memory, or system RAM?
    """
    spent = {name: value for name in _SPENDERS if gpu and (value := values.get(name))}
    found = [f"steps without --{name}" if value is True else f"fewer than {value} for --{name}" for name, value in spent.items()]
    for name, words in _SAVERS:
        held = name in ("fp8_base", "fp8_scaled") and values.get("w8a8")  # in 8 bits already
        if name not in values or held or (not gpu and name in _WITHOUT_GPU):
            continue
        value = values[name]
        if name == "blocks_to_swap" and value:
            found.append(f"more than {value} for --blocks_to_swap")
        elif not value or (name == "batch_size" and value != 1):
            found.append(words)
    return ", ".join(found)


def in_words(error: BaseException, values: Mapping[str, object]) -> str:
    """The message for an error by which something ran out; "" for any other error. values: the tool's options by name, as given."""
    if type(error).__name__ == "FailOnRecompileLimitHit":
        return (
            "--compile_fullgraph: a block met more sizes than PyTorch keeps compiled versions of. "
            "Use --compile_dynamic true, or a higher --compile_cache_size_limit"
        )
    if "no kernel image is available" in str(error):
        return (
            "the installed PyTorch has no code for this GPU. `python install.py --doctor` says which build it needs, and "
            "`python install.py` installs that one"
        )
    if not out_of_memory(error):
        return ""
    gpu, asked = of_gpu(error), _ASKED.search(str(error))
    more = f" ({asked[1]} more were needed)" if asked else ""
    use = savers(values, gpu=gpu)
    advice = f"Use {use}; or fewer frames, or a smaller resolution" if use else "Use fewer frames, or a smaller resolution"
    if gpu:
        return f"the GPU's memory is full{work_of(error)}{more}. {advice}; or close other programs that use the GPU"
    return f"the system's RAM is full{work_of(error)}{more}. {advice}; or close other programs that use it"
