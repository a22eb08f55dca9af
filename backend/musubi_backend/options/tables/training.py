"""How long to train, with what precision, on how many workers and processes."""

from __future__ import annotations

from ..option import LENGTH, NOTHING, TRAIN, WEIGHTS, Group, Option

GROUPS = (
    Group(
        "Settings file",
        (TRAIN,),
        (
            Option(
                "--config_file",
                help='TOML file with settings: keys are the flags without dashes, sections are only for the eye, ".toml" may be left out. '
                "Flags on the command line win over it.",
                effect=NOTHING,
            ),
        ),
    ),
    Group(
        "Training",
        (TRAIN,),
        (
            Option(
                "--max_train_steps",
                int,
                1600,
                minimum=1,
                maximum=10_000_000,
                unit="steps",
                help="How many times the LoRA is updated. A style or a person from 20 to 50 clips usually takes 1000 to 3000.",
                effect=LENGTH,
            ),
            Option(
                "--max_train_epochs",
                int,
                minimum=1,
                maximum=1_000_000,
                unit="epochs",
                help="How often to go through the whole dataset. When set, it decides instead of the number of steps.",
                effect=LENGTH,
            ),
            Option(
                "--seed",
                int,
                minimum=0,
                maximum=2**32 - 1,
                help="Seed of everything random: the LoRA's start, the order of items, noise and timesteps. The same seed repeats a run. "
                "Default: a new one each time.",
                effect=WEIGHTS,
            ),
            Option(
                "--gradient_accumulation_steps",
                int,
                1,
                minimum=1,
                maximum=4096,
                unit="batches",
                help="Batches whose gradients are summed before one update: acts like a larger batch without its memory, and takes that "
                "much longer per update.",
                effect=WEIGHTS,
            ),
            Option(
                "--mixed_precision",
                choices=("no", "fp16", "bf16", "auto"),
                own_choices=("auto",),
                help="Precision (dtype) the transformer computes in. auto follows its file: fp16 for an fp16 file, else bf16; on a CPU "
                "float32 where the file is, or where the CPU has no instructions for the dtype. no: the architecture's own choice.",
                effect=WEIGHTS,
            ),
            Option(
                "--gradient_checkpointing",
                bool,
                False,
                help="Compute each block a second time in the backward pass instead of keeping its intermediate values: far less GPU "
                "memory, about a third more time. Needed on consumer GPUs.",
                effect=NOTHING,
            ),
            Option(
                "--gradient_checkpointing_cpu_offload",
                bool,
                False,
                advanced=True,
                help="With gradient checkpointing, also keep the inputs of the blocks in system RAM. Helps with long, large clips.",
                effect=NOTHING,
            ),
            Option(
                "--keep_attention_blocks",
                int,
                0,
                minimum=0,
                maximum=1000,
                unit="blocks",
                own=True,
                advanced=True,
                help="With gradient checkpointing, in how many blocks attention is not computed a second time: its output stays in GPU "
                "memory, as large as the block's input. The longer the clip, the more time that saves: of all blocks, by arithmetic, a "
                "tenth of a step with 33 frames of 480p, a seventh with 81. 1000 means all.",
                effect=NOTHING,
            ),
            Option(
                "--offload_attention_blocks",
                int,
                0,
                minimum=0,
                maximum=1000,
                unit="blocks",
                own=True,
                advanced=True,
                help="As --keep_attention_blocks, for further blocks: their attention's output waits in system RAM and is copied while the "
                "GPU computes, so it takes no GPU memory.",
                effect=NOTHING,
            ),
            Option(
                "--accumulate_by_block",
                bool,
                False,
                own=True,
                advanced=True,
                help="With gradient accumulation and block swap, all batches of a step pass a block before the next block is copied to the "
                "GPU: as many times fewer copies as batches are accumulated, and the same numbers. Takes the memory of every batch's block "
                "inputs at once.",
                effect=NOTHING,
            ),
        ),
    ),
    Group(
        "Validation",
        (TRAIN,),
        (
            Option(
                "--validation_split",
                float,
                0.0,
                minimum=0,
                maximum=1,
                own=True,
                help="Share of the images or clips that are not trained on: their loss says whether the LoRA learns or only memorises. "
                "A clip is left out with all its windows; at least one is. validation_split of a dataset in the dataset file wins over it, "
                "1 there means the whole dataset. 0: none.",
                effect=WEIGHTS,
            ),
            Option(
                "--validation_seed",
                int,
                minimum=0,
                maximum=2**32 - 1,
                own=True,
                advanced=True,
                help="Seed of which items are left out for validation, and of their noise. Default: --seed.",
                effect=WEIGHTS,
            ),
            Option(
                "--validate_every_n_steps",
                int,
                minimum=1,
                maximum=10_000_000,
                unit="steps",
                own=True,
                help="Measure the validation loss every N steps. It is measured before the first step and after the last one too.",
                effect=NOTHING,
            ),
            Option(
                "--validate_every_n_epochs",
                int,
                minimum=1,
                maximum=1_000_000,
                unit="epochs",
                own=True,
                advanced=True,
                help="Measure the validation loss every N epochs. Default: after each epoch, where no number of steps is given.",
                effect=NOTHING,
            ),
            Option(
                "--max_validation_steps",
                int,
                minimum=1,
                maximum=1_000_000,
                unit="items",
                own=True,
                advanced=True,
                help="Measure the validation loss of N items at most. Each takes four passes without gradient, about as long as two steps. "
                "Default: all that are left out.",
                effect=NOTHING,
            ),
        ),
    ),
    Group(
        "Reading batches",
        (TRAIN,),
        (
            Option(
                "--max_data_loader_n_workers",
                int,
                8,
                minimum=0,
                maximum=256,
                unit="workers",
                advanced=True,
                no_effect="cached items are small and are read where the training runs",
                help="Up to N worker processes read cached items ahead of the training.",
                effect=NOTHING,
            ),
            Option(
                "--persistent_data_loader_workers",
                bool,
                False,
                advanced=True,
                no_effect="there are no workers to keep",
                help="Keep the worker processes from one epoch to the next.",
                effect=NOTHING,
            ),
        ),
    ),
    Group(
        "Several GPUs",
        (TRAIN,),
        (
            Option(
                "--ddp_timeout",
                int,
                minimum=1,
                maximum=100_000,
                unit="minutes",
                advanced=True,
                help="How long processes wait for each other before giving up. Default: accelerate's own time.",
                effect=NOTHING,
            ),
            Option(
                "--fsdp",
                bool,
                False,
                own=True,
                advanced=True,
                help="Spread the frozen transformer over the processes (FSDP2): each keeps its part of every block's matrices, and a "
                "block's are gathered when it runs. For models that are larger than one GPU; costs the time of the transfers. Files, "
                "states and what is learned stay the same.",
                effect=NOTHING,
            ),
            Option(
                "--fsdp_sharding_strategy",
                default="FULL_SHARD",
                choices=("FULL_SHARD", "HYBRID_SHARD"),
                own=True,
                advanced=True,
                help="With --fsdp: FULL_SHARD spreads one copy over all processes of all machines; HYBRID_SHARD one over the processes of "
                "each machine, so that weights never travel between machines.",
                effect=NOTHING,
            ),
            Option(
                "--ddp_gradient_as_bucket_view",
                bool,
                False,
                advanced=True,
                no_effect="a LoRA's gradients are exchanged in one message",
                help="Let gradients share memory with the buffers they are exchanged in.",
                effect=NOTHING,
            ),
            Option(
                "--ddp_static_graph",
                bool,
                False,
                advanced=True,
                no_effect="a LoRA's gradients are exchanged in one message",
                help="Promise that every step uses the same parameters, which lets PyTorch exchange gradients earlier.",
                effect=NOTHING,
            ),
        ),
    ),
)
