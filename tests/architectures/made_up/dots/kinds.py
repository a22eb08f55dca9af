"""How weight files of Dots are recognised: by the tensor names only they have."""

from __future__ import annotations

from ...weights.kinds import Rule

RULES = (
    Rule("dots_transformer", "Dots transformer", ("dots.weight", "blocks.0.grow.weight")),
    Rule("dots_vae", "Dots VAE, which does nothing", ("nothing",)),
)
LORAS = (("Dots", r"blocks[._]\d+[._](grow|shrink)"),)
