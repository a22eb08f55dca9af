"""The settings that only Spots has."""

from __future__ import annotations

from ...options.option import CACHE_LATENTS, CACHE_TEXT, GENERATE, NOTHING, TRAIN, WEIGHTS, Group, Option, OwnOptions
from .card import CARD

_FILES = tuple(
    Option(f"--{name}", path="file", verbs=verbs, effect=NOTHING, help=f"{what}.")
    for name, what, verbs in (
        ("alphabet", "What counts letters", (CACHE_TEXT, TRAIN, GENERATE)),
        ("dictionary", "What counts words", (CACHE_TEXT, TRAIN, GENERATE)),
        ("dit_quick", "The quick transformer", (TRAIN,)),
    )
)
_TASKS = tuple(task.name for task in CARD.tasks)
OPTIONS = OwnOptions(
    groups=(
        Group(
            "Spots",
            (CACHE_LATENTS, CACHE_TEXT, TRAIN, GENERATE),
            (
                Option("--model_version", default="plain", choices=_TASKS, help="Which of the models it is.", effect=WEIGHTS),
                *_FILES,
            ),
        ),
    ),
    takes=("control_image_path",),
    changes={"output_type": {GENERATE: {"default": "images"}}},
    hints={"seed": "Spots: any."},
)
