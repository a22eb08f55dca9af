"""What the nodes of Spots show."""

from __future__ import annotations

from ..widgets import CONTROL_IMAGES, FamilyNodes, Own, Shared, Size, Widget
from .card import CARD

_TASKS = tuple(task.name for task in CARD.tasks)

NODES = FamilyNodes(
    generates="Generate an image of spots from text, to show what a family of image models says of its nodes.",
    variant=Own("version", "COMBO", "Whether it makes images or edits them", default=_TASKS[0], choices=_TASKS),
    sources=(CONTROL_IMAGES,),
    generator=(Widget("prompt", multiline=True), Size(32, 32), Widget("seed", 0, maximum=2**32 - 1), Shared.LORAS, Shared.IMAGES),
)
