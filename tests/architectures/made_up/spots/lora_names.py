"""Spots calls its layers as diffusers calls those of Dots."""

from __future__ import annotations

NAMING = "dots_diffusers"
SAID = ("spots",)
