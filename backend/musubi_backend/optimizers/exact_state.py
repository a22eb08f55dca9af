"""What our own optimizers have in common: a step that goes through the groups, and saved state that is loaded as it was."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


class ExactState(Optimizer):
    """PyTorch's, but for the dtypes of what is loaded."""

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of every weight with a gradient; the loss of `closure`, which is called with gradients on."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            self._step_group(group)
        return loss

    def _step_group(self, group: dict[str, Any]) -> None:
        raise NotImplementedError

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As PyTorch's, but every tensor keeps its dtype: PyTorch would make fp32 and 8-bit moments of bfloat16 weights bfloat16."""
        super().load_state_dict(state_dict)
        ours = [parameter for group in self.param_groups for parameter in group["params"]]
        theirs = [index for group in state_dict["param_groups"] for index in group["params"]]
        for parameter, index in zip(ours, theirs, strict=True):
            for name, value in state_dict["state"].get(index, {}).items():
                if isinstance(value, Tensor):
                    self.state[parameter][name] = value.detach().clone().to(parameter.device)
