"""Optimizers whose saved state is loaded as it was."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.optim import Optimizer


class ExactState(Optimizer):
    """PyTorch's, but for the dtypes of what is loaded."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As PyTorch's, but every tensor keeps its dtype: PyTorch would make fp32 and 8-bit moments of bfloat16 weights bfloat16."""
        super().load_state_dict(state_dict)
        ours = [parameter for group in self.param_groups for parameter in group["params"]]
        theirs = [index for group in state_dict["param_groups"] for index in group["params"]]
        for parameter, index in zip(ours, theirs, strict=True):
            for name, value in state_dict["state"].get(index, {}).items():
                if isinstance(value, Tensor):
                    self.state[parameter][name] = value.detach().clone().to(parameter.device)
