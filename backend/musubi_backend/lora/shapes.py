"""What the parts of one layer in a LoRA file come to, read from their names and shapes. Standard library only.

Names are musubi-tuner's: `lora_down.weight`, `alpha`, `hada_w1_a`, `lokr_w1`, ...
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from math import prod

DOWN, UP, ALPHA, BIAS, DORA = "lora_down.weight", "lora_up.weight", "alpha", "lora_up.bias", "dora_scale"
LORA, LOHA, LOKR, FULL = "LoRA", "LoHa", "LoKr", "full difference"
WHOLE = ("diff", "set_weight")
"""What changes a weight without factors."""
_LOHA = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")

Shapes = Mapping[str, Sequence[int]]


def kind_of(names: Collection[str]) -> str:
    """LORA, LOHA, LOKR or FULL; "" when no factors are there."""
    if DOWN in names and UP in names:
        return LORA
    if all(name in names for name in _LOHA):
        return LOHA
    if all(any(name in names for name in (which, f"{which}_a")) for which in ("lokr_w1", "lokr_w2")):
        return LOKR
    return FULL if any(name in names for name in (*WHOLE, "diff_b")) else ""


def changes_weight(names: Collection[str]) -> bool:
    """Whether they are all it takes to change a weight."""
    return kind_of(names) in (LORA, LOHA, LOKR) or any(name in names for name in WHOLE)


def size_of(shapes: Shapes) -> tuple[int, int] | None:
    """(rows, columns) of the matrix they change; None where only a bias is changed."""
    kind = kind_of(shapes)
    if kind == LORA:
        return shapes[UP][0], prod(shapes[DOWN][1:])
    if kind == LOHA:
        return shapes["hada_w1_a"][0], shapes["hada_w1_b"][1]
    if kind == LOKR:
        first, second = kron_size(shapes, "lokr_w1"), kron_size(shapes, "lokr_w2")
        return first[0] * second[0], first[1] * second[1]
    whole = next((shapes[name] for name in WHOLE if name in shapes), None)
    return None if not whole else (whole[0], prod(whole[1:]))


def kron_size(shapes: Shapes, name: str) -> tuple[int, int]:
    """(rows, columns) of one of a LoKr's two matrices, whole or as a product."""
    if name in shapes:
        return shapes[name][0], prod(shapes[name][1:])
    return shapes[f"{name}_a"][0], prod(shapes[f"{name}_b"][1:])
