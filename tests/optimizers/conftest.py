"""The recorded problem: weights of a small LoRA and their gradients in 20 steps, which every optimizer replays."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor
from torch.optim import Optimizer

STEPS = 20


class Problem:
    """names: of the weights in their order; gradients: name -> [20, *shape]."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with safe_open(folder / "problem.safetensors", "pt") as file:
            self.names = file.metadata()["order"].split("\n")
            self.start = {name: file.get_tensor(f"p0/{name}") for name in self.names}
            self.gradients = {name: file.get_tensor(f"g/{name}") for name in self.names}

    def weights(self, dtype: torch.dtype = torch.float32) -> list[torch.nn.Parameter]:
        return [torch.nn.Parameter(self.start[name].to(dtype, copy=True)) for name in self.names]

    def named(self, weights: list[torch.nn.Parameter]) -> list[tuple[str, torch.nn.Parameter]]:
        return list(zip(self.names, weights, strict=True))

    def run(
        self, optimizer: Optimizer, weights: list[torch.nn.Parameter], steps: range = range(STEPS), rates: Any = None
    ) -> Iterator[list[Tensor]]:
        """The weights after each step. rates: per step, of each group."""
        for step in steps:
            for group, rate in zip(optimizer.param_groups, rates[step] if rates else (), strict=False):
                group["lr"] = rate
            for name, weight in self.named(weights):
                weight.grad = self.gradients[name][step].to(weight.dtype).clone()
            optimizer.step()
            yield [weight.detach().clone() for weight in weights]

    def golden(self, name: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Metadata and name of a weight -> [20, *shape] of a recorded run."""
        with safe_open(self.folder / f"{name}.safetensors", "pt") as file:
            return dict(file.metadata()), {one: file.get_tensor(f"after/{one}") for one in self.names}

    def furthest(self, after: Iterator[list[Tensor]], golden: dict[str, Tensor]) -> float:
        """The largest difference to a recorded run in any number of any step."""
        return max(
            (weight.double() - golden[name][step].double()).abs().max().item()
            for step, weights in enumerate(after)
            for name, weight in zip(self.names, weights, strict=True)
        )


@pytest.fixture(scope="session")
def problem(shared: Path) -> Problem:
    return Problem(shared / "golden" / "optimizers")
