"""From the options to a transformer that takes less memory: before its weights are loaded, and after.

Options of musubi-tuner: `--fp8...`, `--blocks_to_swap` and what belongs to them, `--compile...`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

import torch
from torch import nn

from ..counted import counted
from ..device import check_capability, is_older
from ..errors import UserError
from ..layers.linear import Linear
from . import sharding
from .compiling import Compilation
from .fp8 import Scaling, hold_in_fp8
from .settings import MemorySettings
from .streaming import BlockStream, swapped_blocks
from .w8a8 import check_products, hold_in_8_bits

if TYPE_CHECKING:
    from ..architectures.card import Card
    from ..weights.loader import Weights

logger = logging.getLogger(__name__)

_FAST_CAPABILITY = (8, 9)  # NVIDIA Ada (RTX 40) is the first that multiplies fp8, and for which triton converts it


@dataclass(frozen=True)
class MemoryPlan:
    """What was asked for. The defaults give the model as its file has it. fsdp: how it is spread over processes (`sharding`), if it is."""

    fp8: bool = False
    fp8_scaled: bool = False
    fp8_fast: bool = False
    blocks_to_swap: int = 0
    ring: int = 2
    pinned: bool = False
    compilation: Compilation | None = None
    w8a8: str | None = None
    fsdp: str | None = None

    @classmethod
    def chosen(cls, settings: MemorySettings) -> MemoryPlan:
        """Of a trainer or generator."""
        return cls(
            fp8=settings.fp8 or settings.fp8_base or settings.fp8_scaled,
            fp8_scaled=settings.fp8_scaled,
            fp8_fast=settings.fp8_fast,
            blocks_to_swap=settings.blocks_to_swap,
            ring=settings.block_swap_ring_size,
            pinned=settings.use_pinned_memory_for_block_swap,
            compilation=Compilation.chosen(settings.compilation),
            w8a8=settings.w8a8,
            fsdp=settings.fsdp_sharding_strategy if settings.fsdp else None,
        )

    def prepare(
        self, model: nn.Module, weights: Weights, card: Card, device: torch.device, rename: Callable[[str], str | None] | None = None
    ) -> None:
        """Give an empty `model` the layers that hold its weights as planned. UserError where model, file or device cannot do it."""
        self._swapped(model)
        if self.compilation is not None:
            self.compilation.check(device, swapping=self.blocks_to_swap > 0)
        self._choose_layers(model, weights, card, device, rename)

    def shards(self, model: nn.Module, device: torch.device) -> sharding.Shards | None:
        """Prepare an empty `model` to get its part of the weights; None where it gets all."""
        return None if self.fsdp is None or device.type == "meta" else sharding.Shards(model, device, self.fsdp)

    def stay(self, model: nn.Module) -> set[str]:
        """Names of the tensors to be loaded into system RAM."""
        offloaded = {id(module) for block in chain(*self._swapped(model)) for module in block.modules()}
        return {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, Linear) and id(module) in offloaded}

    def weights(self, model: nn.Module) -> tuple[int, int]:
        """Bytes that the weights of a loaded or planned model take on the device, with the buffers of swapped blocks, and in system
        RAM."""
        stay = self.stay(model)
        sizes = {name: tensor.nbytes for name, tensor in model.state_dict(keep_vars=True).items()}
        offloaded = sum(size for name, size in sizes.items() if name in stay)
        return sum(sizes.values()) - offloaded + self.buffers(model) - self._elsewhere(model, sizes), offloaded

    def buffers(self, model: nn.Module) -> int:
        """Bytes on the device that swapped blocks come into."""
        count = 0
        for blocks in self._swapped(model):
            matrices = [sum(part.weight.nbytes for part in block.modules() if isinstance(part, Linear)) for block in blocks]
            count += min(self.ring, len(blocks)) * max(matrices, default=0)
        return count

    def _elsewhere(self, model: nn.Module, sizes: dict[str, int]) -> int:
        """Bytes of weights that other processes keep, less those of the two blocks that are gathered at a time."""
        count = 1 if self.fsdp is None else sharding.shared_by(self.fsdp)
        if count == 1:
            return 0
        spread = sum(sizes[name] for name in sharding.names_of(model))
        blocks = [sum(part.weight.nbytes for part in block.modules() if isinstance(part, Linear)) for block in chain(*_block_lists(model))]
        return spread - spread // count - 2 * max(blocks, default=0)

    def finish(self, model: nn.Module, device: torch.device) -> None:
        """What needs the loaded weights; nothing on "meta", where there are none."""
        on_device, offloaded = self.weights(model)
        logger.info("weights: %.2f GB on %s, %.2f GB offloaded to system RAM", on_device / 1e9, device, offloaded / 1e9)
        if device.type == "meta":
            return
        swapped = self._swapped(model)
        for blocks in swapped:
            if blocks:
                BlockStream(blocks, device, self.ring, self.pinned)
        if any(swapped):
            logger.info("%s offloaded to system RAM and swapped to %s", counted(sum(map(len, swapped)), "block is", "blocks are"), device)
        if self.compilation is not None:
            self.compilation.compile(chain(*_block_lists(model)))

    def _swapped(self, model: nn.Module) -> list[list[nn.Module]]:
        """Per block list, the blocks that are offloaded to system RAM."""
        lists = _block_lists(model)
        counts = swapped_per_list(self.blocks_to_swap, [len(blocks) for blocks in lists])
        return [
            [blocks[index] for index in swapped_blocks(len(blocks), swapped, self.ring)]
            for blocks, swapped in zip(lists, counts, strict=True)
        ]

    def _choose_layers(
        self, model: nn.Module, weights: Weights, card: Card, device: torch.device, rename: Callable[[str], str | None] | None
    ) -> None:
        if self.w8a8 is not None:
            check_products(self.w8a8, device)
            names = fp8_layers(model, card)
            hold_in_8_bits(model, names, self.w8a8)
            logger.info("multiplying in %d linear layers in %s", len(names), self.w8a8)
            return
        if not self.fp8:
            if weights.holds_fp8:
                logger.info("%s holds fp8 weights, which are made 16 or 32 bits wide; --fp8 or --fp8_base keeps them small", weights.path)
            return
        if self.fp8_scaled and weights.holds_fp8 and not weights.scales:
            raise UserError(
                f"{weights.path} already holds fp8 weights without scales; --fp8_scaled needs the bf16 or fp16 file of this model. "
                "Leave --fp8_scaled out to use this one as it is"
            )
        if self.fp8_fast:
            check_fast(device)
        names = fp8_layers(model, card)
        if weights.holds_fp8:  # what the file's maker kept more exact stays so
            small = {rename(name) if rename else name for name in weights.fp8_names()}
            names = [name for name in names if f"{name}.weight" in small]
        apart = self.compilation is not None and is_older(device, _FAST_CAPABILITY)
        hold_in_fp8(model, names, self._scaling(weights, card), self.fp8_fast, apart)
        logger.info("holding %d linear layers in fp8", len(names))

    def _scaling(self, weights: Weights, card: Card) -> Scaling:
        """For weights that come in more bits, or that a LoRA has changed. Where there is no `--fp8_scaled` to choose, the better way."""
        if self.fp8_fast:
            return "tensor"
        return "block" if self.fp8_scaled or weights.scales or not card.fp8_target else "none"


def fp8_layers(model: nn.Module, card: Card) -> list[str]:
    """Paths of the linears that are held in fp8: musubi-tuner's choice for `--fp8_scaled`, for plain `--fp8` too. Norms,
    embeddings and modulation tables are small and stay exact."""
    target, exclude = card.fp8_target, card.fp8_exclude
    names = (name for name, module in model.named_modules() if isinstance(module, nn.Linear))
    blocks = {id(module) for blocks in _block_lists(model) for module in blocks.modules()}
    return [
        name
        for name in names
        if id(model.get_submodule(name)) in blocks
        and (not target or any(word in name for word in target))
        and not any(word in name for word in exclude)
    ]


def swapped_per_list(blocks_to_swap: int, counts: Sequence[int]) -> list[int]:
    """How many blocks of each list `--blocks_to_swap` means: musubi-tuner's shares, where a double block counts like two single ones.

    UserError where one of them would be all.
    """
    if blocks_to_swap == 0:
        return [0] * len(counts)
    largest = swappable(counts)
    shares = [blocks_to_swap] if len(counts) == 1 else [blocks_to_swap // 2, (blocks_to_swap - blocks_to_swap // 2) * 2 + 1]
    if blocks_to_swap > largest:
        raise UserError(f"--blocks_to_swap {blocks_to_swap}: at most {largest} of the blocks of this model can be offloaded to system RAM")
    return shares


def swappable(counts: Sequence[int]) -> int:
    """The most that `--blocks_to_swap` can be with so many blocks in each list."""
    if len(counts) == 1:
        return max(0, counts[0] - 1)
    double, single = counts
    return max(0, min(2 * double - 1, 2 * ((single - 2) // 2)))  # N // 2 <= double - 1 and (N - N // 2) * 2 + 1 <= single - 1


def _block_lists(model: nn.Module) -> list[nn.ModuleList]:
    lists: list[nn.ModuleList] = model.block_lists()  # type: ignore[operator]
    return lists


def check_fast(device: torch.device) -> None:
    """UserError where fp8 products are not to be had."""
    check_capability(device, _FAST_CAPABILITY, "--fp8_fast needs a GPU that multiplies fp8")
