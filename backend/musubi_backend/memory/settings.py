"""The options that trade time for memory, of trainers and generators."""

from __future__ import annotations

from dataclasses import dataclass

from ..options.settings import Settings


@dataclass(frozen=True)
class CompileSettings(Settings):
    """`--compile...`, and `--dynamo_...` as trainers also have it."""

    compile: bool = False
    compile_backend: str = "inductor"
    compile_mode: str = "default"
    compile_dynamic: str | None = None
    compile_fullgraph: bool = False
    compile_cache_size_limit: int | None = None
    compile_args: tuple[str, str, str, str] | None = None
    dynamo_backend: str = "NO"
    dynamo_mode: str | None = None
    dynamo_fullgraph: bool = False
    dynamo_dynamic: bool = False


@dataclass(frozen=True)
class MemorySettings(Settings):
    """8-bit weights, block swap, recomputed blocks, weights spread over processes, and compilation."""

    fp8: bool = False
    fp8_base: bool = False
    fp8_scaled: bool = False
    fp8_fast: bool = False
    w8a8: str | None = None
    blocks_to_swap: int = 0
    use_pinned_memory_for_block_swap: bool = False
    block_swap_ring_size: int = 2
    gradient_checkpointing: bool = False
    gradient_checkpointing_cpu_offload: bool = False
    keep_attention_blocks: int = 0
    offload_attention_blocks: int = 0
    accumulate_by_block: bool = False
    fsdp: bool = False
    fsdp_sharding_strategy: str = "FULL_SHARD"
    compilation: CompileSettings = CompileSettings()
