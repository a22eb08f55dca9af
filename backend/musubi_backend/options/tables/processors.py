"""What a tool takes of the CPU."""

from __future__ import annotations

from ..option import (
    CACHE_LATENTS,
    CACHE_TEXT,
    CAPTION,
    GENERATE,
    LORA_COMBINE,
    LORA_CONVERT,
    LORA_EMA,
    LORA_EXTRACT,
    LORA_MERGE,
    NOTHING,
    TRAIN,
    Group,
    Option,
)

GROUPS = (
    Group(
        "CPU",
        (TRAIN, CACHE_LATENTS, CACHE_TEXT, GENERATE, CAPTION, LORA_EMA, LORA_CONVERT, LORA_MERGE, LORA_COMBINE, LORA_EXTRACT),
        (
            Option(
                "--cpu_threads",
                int,
                minimum=1,
                maximum=1024,
                unit="threads",
                advanced=True,
                own=True,
                help="How many CPU threads compute. Default: OMP_NUM_THREADS if that is set, else as the work gains: one where a GPU "
                "computes or the models are tiny, else all processors, shared between the processes of a training. Another number can "
                "change the last digits of a result.",
                effect=NOTHING,  # a fact of the machine, as its GPU is, which the same training may be continued on another of
            ),
        ),
    ),
)
