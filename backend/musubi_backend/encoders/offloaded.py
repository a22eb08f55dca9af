"""Text encoders that are larger than the GPU's memory: their embedding and their layers wait in system RAM.

A caption's tokens are looked up there, and the layers come to the device one after the other (`memory.streaming`). Features have the bits
that they have without.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from ..layers.linear import Linear

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

logger = logging.getLogger(__name__)

_RING = 2
"""Layers on the device at a time: one at work, one on its way."""
_WORK = 500_000_000
"""Bytes that encoding takes besides the weights, which is less: an assumption for a batch of captions."""


class Offload:
    """Of an empty encoder: prepared before its weights are loaded, and begun when they are there. layers: called one after the other, each
    with the hidden states first."""

    def __init__(self, model: nn.Module, embedding: nn.Embedding, layers: nn.ModuleList) -> None:
        from torch import nn

        self.model, self.embedding, self.layers = model, embedding, layers
        for layer in layers:
            plain = [name for name, part in layer.named_modules() if isinstance(part, nn.Linear) and not isinstance(part, Linear)]
            for name in plain:
                parent, _, leaf = name.rpartition(".")
                layer.get_submodule(parent)._modules[leaf] = _like(layer.get_submodule(name))

    @property
    def stay(self) -> set[str]:
        """Names of the tensors to be loaded into system RAM."""
        waiting = {id(part) for layer in self.layers for part in layer.modules() if isinstance(part, Linear)} | {id(self.embedding)}
        return {f"{name}.weight" for name, part in self.model.named_modules(remove_duplicate=False) if id(part) in waiting}

    def begin(self, device: torch.device) -> None:
        """Have the layers come when they are called. On "meta" nothing comes, and there are the buffers only."""
        import torch

        from ..memory.streaming import BlockStream

        if device.type == "meta":
            largest = max(sum(part.weight.nbytes for part in layer.modules() if isinstance(part, Linear)) for layer in self.layers)
            vars(self.model)["buffers_of_layers"] = [torch.empty(largest, dtype=torch.uint8, device=device) for _ in range(_RING)]
            return
        stream = BlockStream(list(self.layers), device, _RING)
        self.embedding.register_forward_pre_hook(lambda _, inputs: tuple(tokens.cpu() for tokens in inputs))
        self.embedding.register_forward_hook(lambda _, inputs, found: found.to(device))
        for layer in self.layers:
            layer.register_forward_pre_hook(lambda layer, inputs: _ignored(stream.before(layer, inputs[0])))
            layer.register_forward_hook(lambda layer, inputs, output: _ignored(stream.after(layer, inputs[0])))
        logger.info("the text encoder waits in system RAM: its embedding, and %d layers that come to %s in turn", len(self.layers), device)


def chosen(model: nn.Module, device: torch.device, dtype: torch.dtype, asked: bool) -> bool:
    """Is an empty encoder that computes in `dtype` to be offloaded: where that was asked for, and where it would not fit on the GPU?"""
    import torch

    from ..memory.fp8 import Fp8Linear

    if asked or device.type != "cuda":
        return asked
    small = {f"{name}.weight" for name, part in model.named_modules() if isinstance(part, Fp8Linear)}
    size = sum(tensor.numel() * (1 if name in small else dtype.itemsize) for name, tensor in model.named_parameters())
    free, _ = torch.cuda.mem_get_info(device)
    if size + _WORK <= free:
        return False
    logger.info("the text encoder takes %.1f GB, and %.1f GB of the GPU's memory are free", size / 1e9, free / 1e9)
    return True


def _like(linear: Any) -> Linear:
    with linear.weight.device:
        return Linear(linear.in_features, linear.out_features, linear.bias is not None).requires_grad_(False)


def _ignored(_: Tensor) -> None:
    """Without gradients a stream returns what it was given."""
