"""The matrices of a frozen transformer's blocks, spread over the processes of a training (FSDP2, `torch.distributed.fsdp.fully_shard`).

Each process keeps its rows of every matrix; before a block runs, forward and backward, its matrices are gathered, and let go behind it.
Norms, biases, embeddings and LoRAs are small and whole everywhere, so files and states know nothing of it. Every process must run the same
blocks in the same order: they wait for each other in each.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from ..counted import counted
from ..errors import UserError
from ..layers.linear import Linear

logger = logging.getLogger(__name__)

FULL, HYBRID = "FULL_SHARD", "HYBRID_SHARD"
"""Over all processes, or over those of each machine: as FSDP and accelerate call it."""


def shared_by(strategy: str) -> int:
    """How many processes of the group share one copy of the weights: 1 where there is no group."""
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return 1
    world = torch.distributed.get_world_size()
    return world if strategy == FULL else int(os.environ.get("LOCAL_WORLD_SIZE", world))


def check(strategy: str) -> None:
    """UserError where there is nobody to share with."""
    if shared_by(strategy) > 1:
        return
    where = "" if strategy == FULL else f" on each machine (--fsdp_sharding_strategy {HYBRID})"
    raise UserError(
        f"--fsdp spreads the transformer over several processes, and there is one{where}. Start it with several: accelerate launch "
        "--num_processes N, or processes of the trainer node; or leave --fsdp out"
    )


def names_of(model: nn.Module) -> list[str]:
    """The weights that are spread: all matrices of the blocks."""
    lists: list[nn.ModuleList] = model.block_lists()  # type: ignore[operator]
    blocks = {id(module) for block in chain(*lists) for module in block.modules()}
    return [f"{name}.weight" for name, module in model.named_modules() if isinstance(module, Linear) and id(module) in blocks]


class Shards:
    """Prepares an empty model (on "meta") for its part of the weights, and cuts it out as they are loaded (`part`)."""

    def __init__(self, model: nn.Module, device: torch.device, strategy: str) -> None:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        count, world = shared_by(strategy), torch.distributed.get_world_size()
        self._mesh = init_device_mesh(device.type, (world // count, count), mesh_dim_names=("copies", "shards"))["shards"]
        self._names = frozenset(names_of(model))
        whole = {parameter for name, parameter in model.named_parameters() if name not in self._names}
        lists: list[nn.ModuleList] = model.block_lists()  # type: ignore[operator]
        for block in chain(*lists):
            fully_shard(block, mesh=self._mesh, reshard_after_forward=True, ignored_params=whole)
            block.set_custom_all_gather(_Bytes())  # type: ignore[operator]
        fully_shard(model, mesh=self._mesh, ignored_params=whole)
        next(chain(*lists)).register_forward_pre_hook(_let_gradient_through, prepend=True)
        logger.info("the matrices of %s are spread over %d processes", counted(sum(map(len, lists)), "block"), count)

    def part(self, name: str, weight: Tensor) -> Tensor:
        """What this process keeps of a tensor [rows, ...] of the model: its rows, or all of it."""
        if name not in self._names:
            return weight
        from torch.distributed.tensor import DTensor, Shard

        rows = -(-len(weight) // self._mesh.size())
        start = min(self._mesh.get_local_rank() * rows, len(weight))
        own = weight[start : start + rows].clone()
        shape, strides = weight.shape, weight.contiguous().stride()
        return DTensor.from_local(own, self._mesh, [Shard(0)], run_check=False, shape=shape, stride=strides)


class _Bytes:
    """How a block's matrices are gathered: as bytes, since not every way between processes knows 8-bit floats (gloo does not)."""

    def allocate(self, size: Sequence[int], *, dtype: torch.dtype, device: torch.device) -> Tensor:
        return torch.empty(*size, dtype=dtype, device=device)

    def __call__(self, output_tensor: Tensor, input_tensor: Tensor, group: Any, async_op: bool = False) -> Any:
        out, mine = output_tensor.view(torch.uint8), input_tensor.view(torch.uint8)
        gather = getattr(torch.distributed, "all_gather_single", None) or torch.distributed.all_gather_into_tensor  # its name before 2.13
        return gather(out, mine, group=group, async_op=async_op)


def _let_gradient_through(_: nn.Module, inputs: tuple[Any, ...]) -> None:
    """Each process may leave out other LoRA modules; backward must run through the same blocks in all of them all the same."""
    if torch.is_grad_enabled() and not inputs[0].requires_grad:
        inputs[0].requires_grad_()
