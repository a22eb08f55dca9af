"""Attention, compilation, and what trades time for memory."""

from __future__ import annotations

from ..option import CACHE_TEXT, GENERATE, NOTHING, TRAIN, WEIGHTS, Group, Option

GROUPS = (
    Group(
        "Attention (choose one)",
        (TRAIN,),
        (
            Option(
                "--sdpa",
                bool,
                False,
                help="Attention by PyTorch itself: always there, and as fast as the others on recent versions. The usual choice.",
                effect=WEIGHTS,
            ),
            Option(
                "--flash_attn",
                bool,
                False,
                advanced=True,
                help="Attention by the flash-attn package (version 2), which must be installed in the backend.",
                effect=WEIGHTS,
            ),
            Option(
                "--flash3",
                bool,
                False,
                advanced=True,
                help="Attention by FlashAttention 3, for Hopper GPUs; the package must be installed in the backend.",
                effect=WEIGHTS,
            ),
            Option(
                "--xformers",
                bool,
                False,
                advanced=True,
                help="Attention by the xformers package, which must be installed in the backend.",
                effect=WEIGHTS,
            ),
            Option(
                "--sage_attn",
                bool,
                False,
                advanced=True,
                unsupported="SageAttention computes no gradients, so nothing can be trained through it; use --sdpa",
                help="Attention by SageAttention. It cannot train.",
                effect=WEIGHTS,
            ),
            Option(
                "--split_attn",
                bool,
                False,
                advanced=True,
                help="Compute attention one item of the batch at a time: less memory with batch sizes above 1, a little slower.",
                effect=WEIGHTS,
            ),
        ),
    ),
    Group(
        "Attention",
        (GENERATE,),
        (
            Option(
                "--attn_mode",
                default="torch",
                choices=("flash", "flash2", "flash3", "torch", "sageattn", "xformers", "sdpa"),
                help="Which attention computes the video. torch and sdpa are PyTorch's own; the others need their package in the backend. "
                "sageattn is the fastest and least exact.",
            ),
        ),
    ),
    Group(
        "fp8 weights",
        (TRAIN, GENERATE),
        (
            Option(
                "--fp8_base",
                bool,
                False,
                verbs=(TRAIN,),
                advanced=True,
                help="Hold the frozen transformer's blocks in fp8: half the memory of bf16, a little less exact. An fp8 file "
                "stays as small as it is.",
                effect=WEIGHTS,
            ),
            Option(
                "--fp8",
                bool,
                False,
                verbs=(GENERATE,),
                advanced=True,
                help="Hold the transformer's blocks in fp8: half the memory of bf16, a little less exact. An fp8 file stays "
                "as small as it is.",
            ),
            Option(
                "--fp8_scaled",
                bool,
                False,
                on_request=True,
                advanced=True,
                help="fp8 with one scale per 64 weights: nearly as small as plain fp8 and closer to the original. A trainer "
                "wants --fp8_base with it.",
                effect=WEIGHTS,
            ),
            Option(
                "--w8a8",
                choices=("int8", "fp8"),
                verbs=(TRAIN,),
                own=True,
                advanced=True,
                help="Hold the frozen transformer's blocks in 8 bits and also multiply in 8 bits, forward and backward (W8A8): half the "
                "memory of bf16 and faster products, about as exact as --fp8_scaled. int8 from RTX 20 on, fp8 from RTX 40 on.",
                effect=WEIGHTS,
            ),
            Option(
                "--fp8_fast",
                bool,
                False,
                verbs=(GENERATE,),
                on_request=True,
                advanced=True,
                help="With --fp8 or --fp8_scaled, multiply in fp8 too, on GPUs that can (RTX 40 and later). Faster, less exact.",
            ),
        ),
    ),
    Group(
        "Block swap (offloading to system RAM)",
        (TRAIN, GENERATE),
        (
            Option(
                "--blocks_to_swap",
                int,
                differs={GENERATE: {"default": 0}},
                minimum=0,
                maximum=1000,
                unit="blocks",
                advanced=True,
                help="How many blocks of the transformer are offloaded to system RAM and copied to the GPU when their turn comes. More "
                "saves GPU memory and costs time, little as long as a transfer fits behind the computation. At most one less than the "
                "model has.",
                effect=NOTHING,
            ),
            Option(
                "--use_pinned_memory_for_block_swap",
                bool,
                False,
                advanced=True,
                help="Keep what is offloaded, the swapped blocks or the inactive expert, in pinned memory: faster transfers, but pinned "
                "system RAM cannot be used by anything else.",
                effect=NOTHING,
            ),
            Option(
                "--block_swap_h2d_only",
                bool,
                False,
                verbs=(TRAIN,),
                advanced=True,
                no_effect="blocks are only ever copied to the GPU and never back, as a LoRA leaves them unchanged",
                help="Copy blocks to the GPU only and never back.",
                effect=NOTHING,
            ),
            Option(
                "--block_swap_ring_size",
                int,
                2,
                verbs=(TRAIN,),
                minimum=1,
                maximum=64,
                unit="blocks",
                advanced=True,
                help="How many GPU buffers the swapped blocks of --blocks_to_swap go through; they are part of the blocks that stay.",
                effect=NOTHING,
            ),
            Option(
                "--img_in_txt_in_offloading",
                bool,
                False,
                verbs=(TRAIN,),
                advanced=True,
                no_effect="the layers that take in image and text need at most 0.4 GB and stay on the GPU",
                help="Also keep the layers that take in image and text in system RAM.",
                effect=NOTHING,
            ),
        ),
    ),
    Group(
        "Memory of the text encoder",
        (CACHE_TEXT, TRAIN, GENERATE),
        (
            Option(
                "--offload_text_encoder",
                bool,
                False,
                on_request=True,
                own=True,
                advanced=True,
                help="Keep the text encoder in system RAM and copy its layers to the GPU one after the other: about 1.5 GB of GPU memory "
                "instead of 11 to 15, and the same result. It takes a second or two for each batch of captions. Where the encoder does "
                "not fit on the GPU this happens by itself.",
                effect=NOTHING,
            ),
        ),
    ),
    Group(
        "Memory plan",
        (TRAIN,),
        (
            Option(
                "--vram",
                own=True,
                help="Choose what saves memory so that the training fits: auto (what is free on the GPU) or a number of GB. Attention, "
                "--gradient_checkpointing, fp8 weights, --blocks_to_swap and --gradient_checkpointing_cpu_offload are chosen, those that "
                "cost least first; what is given stays. off: plan nothing, and start even what cannot fit. Unless it is off, "
                "a training whose GPU memory runs out steps these settings down once and goes on.",
                effect=NOTHING,
            ),
            Option(
                "--dry_step",
                bool,
                False,
                own=True,
                advanced=True,
                help="Do one real step of the largest batch, say what it took and what the plan said, and end. Nothing is saved.",
                effect=NOTHING,
            ),
        ),
    ),
    Group(
        "Compilation",
        (TRAIN, GENERATE),
        (
            Option(
                "--compile",
                bool,
                False,
                advanced=True,
                help="Compile the transformer's blocks with torch.compile: faster after a start of a minute or more. NVIDIA cards need "
                "triton for it (on Windows triton-windows).",
                effect=WEIGHTS,
            ),
            Option(
                "--compile_backend",
                default="inductor",
                advanced=True,
                help="Compiler that torch.compile uses.",
                effect=WEIGHTS,
            ),
            Option(
                "--compile_mode",
                default="default",
                choices=("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"),
                advanced=True,
                help="How hard torch.compile tries: more tuning starts later and runs faster.",
                effect=WEIGHTS,
            ),
            Option(
                "--compile_dynamic",
                choices=("true", "false", "auto"),
                advanced=True,
                help="Compile for changing sizes (true), for each size anew (false), or decide on the way (auto).",
                effect=WEIGHTS,
            ),
            Option(
                "--compile_fullgraph",
                bool,
                False,
                advanced=True,
                help="Fail where a block cannot be compiled in one piece.",
                effect=NOTHING,
            ),
            Option(
                "--compile_cache_size_limit",
                int,
                minimum=1,
                maximum=100_000,
                advanced=True,
                help="How many compiled versions of one block are kept, for example one per bucket size.",
                effect=WEIGHTS,
            ),
            Option(
                "--compile_args",
                nargs=4,
                verbs=(GENERATE,),
                on_request=True,
                advanced=True,
                help="Older spelling of the four settings above: backend, mode, dynamic, fullgraph.",
            ),
            Option(
                "--dynamo_backend",
                default="NO",
                choices=(
                    *("NO", "EAGER", "AOT_EAGER", "INDUCTOR", "AOT_TS_NVFUSER", "NVPRIMS_NVFUSER", "CUDAGRAPHS", "OFI", "FX2TRT", "ONNXRT"),
                    *("TENSORRT", "AOT_TORCHXLA_TRACE_ONCE", "TORCHXLA_TRACE_ONCE", "IPEX", "TVM", "HPU_BACKEND"),
                ),
                verbs=(TRAIN,),
                advanced=True,
                help="Older spelling of --compile and --compile_backend. NO is off.",
                effect=WEIGHTS,
            ),
            Option(
                "--dynamo_mode",
                choices=("default", "reduce-overhead", "max-autotune"),
                verbs=(TRAIN,),
                advanced=True,
                help="Older spelling of --compile_mode, with --dynamo_backend.",
                effect=WEIGHTS,
            ),
            Option(
                "--dynamo_fullgraph",
                bool,
                False,
                verbs=(TRAIN,),
                advanced=True,
                help="Older spelling of --compile_fullgraph, with --dynamo_backend.",
                effect=NOTHING,
            ),
            Option(
                "--dynamo_dynamic",
                bool,
                False,
                verbs=(TRAIN,),
                advanced=True,
                help="Older spelling of --compile_dynamic true, with --dynamo_backend.",
                effect=WEIGHTS,
            ),
        ),
    ),
    Group(
        "CUDA",
        (TRAIN,),
        (
            Option(
                "--cuda_allow_tf32",
                bool,
                False,
                advanced=True,
                help="Multiply float32 matrices in TF32 on Ampere and later GPUs: faster, with 10 bits of mantissa. bf16 training gains "
                "little.",
                effect=WEIGHTS,
            ),
            Option(
                "--cuda_cudnn_benchmark",
                bool,
                False,
                advanced=True,
                help="Let cuDNN try its algorithms on each new size and keep the fastest. Helps when sizes seldom change.",
                effect=WEIGHTS,
            ),
        ),
    ),
)
