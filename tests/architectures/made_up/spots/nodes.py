"""What the nodes of Spots show."""

from __future__ import annotations

from ..widgets import FamilyNodes, Shared, Size, Widget

NODES = FamilyNodes(
    generates="Generate an image of spots from text, to show what a family of image models says of its nodes.",
    generator=(Widget("prompt", multiline=True), Size(32, 32), Widget("seed", 0, maximum=2**32 - 1), Shared.LORAS),
)
