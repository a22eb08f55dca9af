"""Models that other libraries run: how a stop request reaches the middle of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .. import job

if TYPE_CHECKING:
    from torch import nn


def stop_between_layers(model: nn.Module) -> None:
    """Have every call of a part of `model` raise StopRequested once the job was asked to stop (`job.leave_if_asked`)."""
    for module in model.modules():
        if any(True for _ in module.children()):  # blocks and what they are made of; single layers are done in a moment
            module.register_forward_pre_hook(_leave_if_asked)


def _leave_if_asked(module: Any, inputs: Any) -> None:
    job.leave_if_asked()
