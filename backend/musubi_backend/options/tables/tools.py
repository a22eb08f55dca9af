"""Our own tools, which musubi-tuner does not have."""

from __future__ import annotations

from ...architectures import cards, cards_of_caches, default_card, part_of
from ..option import DEMO_DATASET, DEMO_MODELS, INSPECT_DATASET, PLAN, RESOURCES, TENSORBOARD, VIDEO_CONVERT, VIEW_DATASET, Group, Option

_DEMOS = [module for card_id in cards() if (module := part_of(card_id, "demo")) is not None]
CAPTIONER = "qwen_vl"
"""The demo model that belongs to no architecture."""
CHESSBOARD = "chessboard"
SUBJECTS = ("photographs", CHESSBOARD)

GROUPS = (
    Group(
        "Demo",
        (DEMO_MODELS, DEMO_DATASET),
        (
            Option(
                "--output",
                required=True,
                path="output",
                help="Folder to write into; made if missing. Files that are already right are left alone.",
            ),
            Option(
                "--seed",
                int,
                0,
                minimum=0,
                maximum=2**32 - 1,
                help="Seed of the random weights or of the camera paths: the same seed writes the same files.",
            ),
            Option(
                "--kind",
                default=next(iter(_DEMOS[0].KINDS)),
                choices=(*(kind for module in _DEMOS for kind in module.KINDS), CAPTIONER),
                verbs=(DEMO_MODELS,),
                help=f"Which models to make: {'; '.join(module.ABOUT for module in _DEMOS)}; {CAPTIONER} writes captions.",
            ),
            Option("--clips", int, 4, verbs=(DEMO_DATASET,), minimum=1, maximum=64, unit="clips", help="How many clips to make."),
            Option(
                "--size",
                int,
                (64, 64),
                nargs=2,
                verbs=(DEMO_DATASET,),
                minimum=16,
                maximum=1024,
                unit="pixels",
                help="Width and height of the clips; multiples of 16.",
            ),
            Option(
                "--subject",
                default=SUBJECTS[0],
                choices=SUBJECTS,
                verbs=(DEMO_DATASET,),
                help="What they show: moves over photographs, or a chessboard, which a tiny model learns so well that one sees it.",
            ),
            Option("--frames", int, 17, verbs=(DEMO_DATASET,), minimum=5, maximum=257, unit="frames", help="Length of each clip; 4n+1."),
        ),
    ),
    Group(
        "Conversion",
        (VIDEO_CONVERT,),
        (
            Option("--input", required=True, path="any", help="Video file, or folder of png files, to read."),
            Option("--output", required=True, path="output", help="File to write, or folder for png files."),
            Option(
                "--format",
                choices=("mp4", "webm", "gif", "png"),
                help="What to write. Default: what the ending of --output says.",
            ),
            Option("--fps", int, minimum=1, maximum=240, unit="frames/s", help="Speed the result plays at. Default: that of the input."),
        ),
    ),
    Group(
        "TensorBoard",
        (TENSORBOARD,),
        (Option("--logging_dir", required=True, path="any", help="Folder with logs of trainings, and of any below it."),),
    ),
    Group(
        "Resources",
        (RESOURCES,),
        (
            Option(
                "--seconds", float, 0.0, minimum=0, maximum=3600, unit="s", help="How long to look, for what is taken at most. 0: once."
            ),
            Option(
                "--processes",
                int,
                nargs="*",
                minimum=1,
                maximum=2**32 - 1,
                help="Pids of processes to look at, with all that they started.",
            ),
            Option("--output", path="output", help="JSON file to write to. Default: it is printed."),
        ),
    ),
    Group(
        "Inspection",
        (INSPECT_DATASET,),
        (
            Option("--dataset_config", required=True, path="file", help="Dataset file (.toml or .json) to look into."),
            Option(
                "--architecture",
                default=default_card().id,
                choices=tuple(cards_of_caches()),
                help="Which architecture it is meant for: decides frame rate, bucket sizes and names of caches.",
            ),
            Option("--output", path="output", help="JSON file to write the report to. Default: it is printed."),
            Option("--places_only", bool, False, help="Report only which folders and lists the file names, without looking into them."),
        ),
    ),
    Group(
        "Planning",
        (PLAN,),
        (
            Option("--output", path="output", help="JSON file to write the plan to. Default: it is printed."),
            Option(
                "--gpu",
                help="A GPU to plan for and to tell the time of a step on, such as RTX 4090: 60 % of its data sheet. Default: the one that "
                "is there, after measuring it for two seconds.",
            ),
            Option(
                "training",
                nargs="...",
                required=True,
                help="The command of a training as it would be started: the name of a trainer, --dit ... With --vram in it, what that "
                "chooses is in the plan. Caches need not be there.",
            ),
        ),
    ),
    Group(
        "Viewing",
        (VIEW_DATASET,),
        (
            Option("--dataset_config", required=True, path="file", help="Dataset file (.toml or .json) to show."),
            Option(
                "--architecture",
                default=default_card().id,
                choices=tuple(cards_of_caches()),
                help="Which architecture it is trained for: decides frame rate and bucket sizes.",
            ),
            Option("--page", int, 1, minimum=1, maximum=100000, help="Which page to show."),
            Option("--items_per_page", int, 12, minimum=1, maximum=100, unit="items", help="How many images or clips a page has."),
            Option("--tile_size", int, 320, minimum=128, maximum=1024, unit="pixels", help="Width of one item on the contact sheet."),
            Option("--output", required=True, path="output", help="PNG file to write the contact sheet to."),
            Option("--report", required=True, path="output", help="JSON file to write the list to."),
        ),
    ),
)
