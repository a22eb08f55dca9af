"""How many kernels a block asks a GPU for in a training step, and how much those move that are no products: numbers that only go down."""

from __future__ import annotations

import pytest
from counted_kernels import of_blocks

BUDGET = {  # launches; bytes as multiples of the block's input. A step with LoRA and checkpointing, 480p and 33 frames
    "Wan 1.3B": {"WanAttentionBlock": (175, 160.0)},
    "HunyuanVideo": {"MMDoubleStreamBlock": (182, 147.1), "MMSingleStreamBlock": (64, 119.5)},
    "FramePack": {"HunyuanVideoTransformerBlock": (228, 146.2), "HunyuanVideoSingleTransformerBlock": (99, 114.5)},
}


@pytest.mark.parametrize("model", BUDGET)
def test_a_block_asks_for_no_more_than_it_did(model: str) -> None:
    counted = of_blocks(model)
    assert counted.keys() == BUDGET[model].keys()
    for block, (launches, moved) in BUDGET[model].items():
        found = counted[block]
        assert found[0] <= launches and found[1] <= moved, f"{block}: {found}, and it was {launches, moved}"
        assert found[0] > 0.95 * launches and found[1] > 0.95 * moved, f"{block} has become better: write {found} into the table"
