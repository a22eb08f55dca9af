"""The example workflows of Dots."""

from __future__ import annotations

from ..templates import Template

TEMPLATES = (Template("dots", "my_dots", {"kind": "slow"}, {"path": "dots", "target_frames": "5"}, {"pattern": "ring"}),)
