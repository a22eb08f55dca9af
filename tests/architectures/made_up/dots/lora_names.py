"""The names of the layers of Dots in LoRA files."""

from __future__ import annotations

from ...lora.naming import Naming, Table

TABLE = Table(
    (Naming("dots", "Dots"), Naming("dots_diffusers", "Dots, diffusers' names", diffusers=True)),
    said=(("dots", "dots"), ("other", "")),
    rows=((("blocks.{}.shrink",), ("blocks.{}.ff.proj_out",)), (("out",), ("final.proj",))),
)
