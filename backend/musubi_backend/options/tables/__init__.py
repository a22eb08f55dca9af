"""The tables: nothing but data. Defaults, choices and names are musubi-tuner's; words and bounds are ours.

What only one architecture has, and what it has otherwise, is in its folder (`options.py`).
"""

from __future__ import annotations

from . import (
    caching,
    captioning,
    generation,
    logging,
    lora,
    lora_tools,
    memory,
    models,
    optimizer,
    processors,
    saving,
    timesteps,
    tools,
    training,
)

GROUPS = (
    *training.GROUPS,
    *models.GROUPS,
    *caching.GROUPS,
    *captioning.GROUPS,
    *generation.GROUPS,
    *lora.GROUPS,
    *optimizer.GROUPS,
    *timesteps.GROUPS,
    *saving.GROUPS,
    *logging.GROUPS,
    *memory.GROUPS,
    *processors.GROUPS,
    *lora_tools.GROUPS,
    *tools.GROUPS,
)
