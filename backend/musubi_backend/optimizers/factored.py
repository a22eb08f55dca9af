"""Averages of squares that cost a row and a column of a matrix (arXiv:1804.04235)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def inverse_root(state: dict[str, Any], name: str, squares: Tensor, beta: float) -> Tensor:
    """One over the root of the average of squares; of matrices from the means of their rows and columns, in the state."""
    if squares.ndim < 2:
        average = state.setdefault(name, torch.zeros_like(squares))
        average.mul_(beta).add_(squares, alpha=1 - beta)
        whole: Tensor = average.rsqrt()
        return whole
    rows = state.setdefault(f"{name}_row", torch.zeros_like(squares.mean(-1)))
    columns = state.setdefault(f"{name}_col", torch.zeros_like(squares.mean(-2)))
    rows.mul_(beta).add_(squares.mean(-1), alpha=1 - beta)
    columns.mul_(beta).add_(squares.mean(-2), alpha=1 - beta)
    result: Tensor = (rows / rows.mean(-1, keepdim=True)).rsqrt().unsqueeze(-1) * columns.unsqueeze(-2).rsqrt()
    return result
