"""Two transformers of one shape, of which the noise level says which one is active: Wan2.2's experts for high and low noise.

They behave like one transformer, so sampling and training need not know. The inactive one can be offloaded to system RAM, or not be loaded
at all; weights never change, so nothing is ever copied back from the device.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from ..architectures.card import HIGH, LOW
from ..device import release
from .blocks import KeptAttention
from .pinned import Pinned

logger = logging.getLogger(__name__)

_WORTH_PINNING = 4096  # bytes: a page, as memory is pinned by pages

Load = Callable[[torch.device], nn.Module]


class Experts(nn.Module):
    """The pair. boundary: sigma (timestep / 1000) from which the high-noise expert works.

    The models lie in a dictionary, not as sub-modules: `.to()` and `state_dict()` of a pair mean something else than of one model.
    """

    def __init__(
        self,
        load: Mapping[str, Load],
        boundary: float,
        device: torch.device,
        *,
        offload: bool = False,
        pinned: bool = False,
        lazy: bool = False,
    ) -> None:
        """load: for LOW and HIGH, from where it is to be to the frozen model there. offload: keep the inactive one in system RAM; pinned:
        so that a GPU copies from it fast. lazy: a model is loaded when its steps begin and dropped when they end."""
        super().__init__()
        self.boundary, self.device = boundary, device
        self.offload, self.pinned, self.lazy = offload, pinned and device.type == "cuda", lazy
        self.models: dict[str, Any] = {}
        self.load = dict(load)
        self._offloaded: dict[str, _Offloaded] = {}
        self.working: str | None = None
        if not lazy:
            for name in (HIGH, LOW):
                self._load(name, torch.device("cpu") if offload and device.type != "meta" else device)
            self._use(LOW)

    def at(self, timestep: float) -> nn.Module:
        """The expert for a timestep (0..1000), ready to work on the device."""
        name = HIGH if timestep / 1000 >= self.boundary else LOW
        self._use(name)
        model: nn.Module = self.models[name]
        return model

    def forward(self, latents: Tensor, timesteps: Tensor, *inputs: Any, **more: Any) -> Tensor:
        """As the experts' own. timesteps [B] must lie on one side of the boundary."""
        result: Tensor = self.at(float(timesteps.flatten()[0]))(latents, timesteps, *inputs, **more)
        return result

    def block_lists(self) -> list[nn.ModuleList]:
        """Those of one expert: they have equal blocks, and only one of them is active."""
        name = self.working or HIGH
        self._use(name)
        lists: list[nn.ModuleList] = self.models[name].block_lists()
        return lists

    @property
    def gradient_checkpointing(self) -> bool:
        return all(model.gradient_checkpointing for model in self.models.values())

    @gradient_checkpointing.setter
    def gradient_checkpointing(self, on: bool) -> None:
        for model in self.models.values():
            model.gradient_checkpointing = on

    @property
    def gradient_checkpointing_cpu_offload(self) -> bool:
        return all(model.gradient_checkpointing_cpu_offload for model in self.models.values())

    @gradient_checkpointing_cpu_offload.setter
    def gradient_checkpointing_cpu_offload(self, on: bool) -> None:
        for model in self.models.values():
            model.gradient_checkpointing_cpu_offload = on

    @property
    def kept_attention(self) -> KeptAttention:
        kept: KeptAttention = self.models[LOW].kept_attention
        return kept

    @kept_attention.setter
    def kept_attention(self, kept: KeptAttention) -> None:
        for model in self.models.values():
            model.kept_attention = kept

    def to(self, device: torch.device | str) -> Experts:  # type: ignore[override]
        """To system RAM, everything; to the device, whatever is to be there: all, or the active one."""
        target = torch.device(device)
        if self.offload:
            if target.type == "cpu" and self.working is not None:
                self._offloaded[self.working].to_system_ram()
                self.working = None
        else:
            for model in self.models.values():
                model.to(target)
        return self

    def _use(self, name: str) -> None:
        if name == self.working:
            return
        if self.lazy:
            self.models.clear()
            release(self.device)
            self._load(name, self.device)
        elif self.offload:
            if self.working is not None:
                self._offloaded[self.working].to_system_ram()
            self._offloaded[name].to_device(self.device)
        self.working = name

    def _load(self, name: str, device: torch.device) -> None:
        logger.info("Loading the %s noise model", name)
        self.models[name] = self.load[name](device)
        if self.offload:
            self._offloaded[name] = _Offloaded(self.models[name], self.device if self.pinned else None)


class _Offloaded:
    """A model's tensors in system RAM. What is on the device are copies, which are dropped."""

    def __init__(self, model: nn.Module, pinned: torch.device | None) -> None:
        """pinned: the device to pin the memory for, as much of it as its driver lets."""
        self.tensors = list(chain(model.parameters(), model.buffers()))
        self.homes: list[Pinned] = []
        if pinned is not None:
            self._pin(pinned)
        self.originals = [tensor.data for tensor in self.tensors]

    def _pin(self, device: torch.device) -> None:
        """One tensor after the other, so that no more than one is there twice."""
        for tensor in self.tensors:
            if tensor.nbytes < _WORTH_PINNING:
                continue
            home = Pinned(tensor.nbytes, device)
            if not home.pinned:
                return
            there = home.memory.view(tensor.dtype).view(tensor.shape)
            there.copy_(tensor.data)
            tensor.data = there
            self.homes.append(home)

    def to_device(self, device: torch.device) -> None:
        for tensor, original in zip(self.tensors, self.originals, strict=True):
            tensor.data = original.to(device, non_blocking=True)

    def to_system_ram(self) -> None:
        for tensor, original in zip(self.tensors, self.originals, strict=True):
            tensor.data = original


def experts_of(model: nn.Module) -> dict[str, nn.Module]:
    """The models behind one: LOW and HIGH of a pair, else the model itself under an empty name."""
    if not isinstance(model, Experts):
        return {"": model}
    return {name: model.models[name] for name in (LOW, HIGH)}


def boundary_of(model: nn.Module) -> float | None:
    """The boundary sigma of a pair; None for a single model."""
    return model.boundary if isinstance(model, Experts) else None
