"""What makes a tiny transformer one that a LoRA can teach: well conditioned, and with nothing in its frozen parts that loses information.

Untrained random weights would not do: a LoRA changes only the blocks, so what the patch embedding drops or the head cannot
express is lost for good. Here the embedding is an isometry, the head is its inverse, and the blocks add little to the stream.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor

BLOCK_GAIN = 0.1
"""Size of what an untrained block adds to the stream, relative to its input."""
ANCHOR = 0.7
"""Length of a constant part of the stream relative to that of noise. It keeps the layer norms from hiding how large the input is."""
HEAD_GAIN = 3.0
"""The head gives three times its input: the layer norm bounds what a LoRA can make it say, and small timesteps need more than the input."""


def basis(dim: int, generator: torch.Generator) -> Tensor:
    """dim - 1 orthonormal columns [dim, dim - 1] whose entries sum to 0, so that layer norms do not shift them."""
    import torch

    vectors = torch.randn(dim, dim, generator=generator, dtype=torch.float64)
    vectors[:, 0] = 1
    columns: Tensor = torch.linalg.qr(vectors)[0][:, 1:]
    return columns.float().contiguous()
