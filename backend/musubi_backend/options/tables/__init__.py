"""The tables: nothing but data. Defaults, choices and names are musubi-tuner's; words and bounds are ours."""

from __future__ import annotations

from . import (
    caching,
    captioning,
    framepack,
    generation,
    hunyuan_encoders,
    hunyuan_video,
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
    *hunyuan_encoders.GROUPS,
    *caching.GROUPS,
    *captioning.GROUPS,
    *generation.GROUPS,
    *hunyuan_video.GROUPS,
    *framepack.GROUPS,
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
