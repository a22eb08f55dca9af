"""How the averages of an optimizer are kept: in fp32, or in 8 bits."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

BLOCK = 256
State = dict[str, Any]


class Keeper(Protocol):
    """Gives the averages of a bucket as tensors to compute with, and keeps what became of them."""

    def load(self, name: str, states: list[State], like: list[Tensor]) -> list[Tensor]: ...

    def store(self, name: str, states: list[State], values: list[Tensor]) -> None: ...


class Whole:
    """In the dtype that is computed in, which is at least fp32."""

    def load(self, name: str, states: list[State], like: list[Tensor]) -> list[Tensor]:
        """The tensors themselves, zeros at first; what is written into them is kept."""
        for state, tensor in zip(states, like, strict=True):
            if name not in state:
                state[name] = torch.zeros_like(tensor)
        return [state[name] for state in states]

    def store(self, name: str, states: list[State], values: list[Tensor]) -> None:
        """Nothing to do."""


class EightBit:
    """One byte per number and one fp32 scale per 256 (arXiv:2110.02861), by bitsandbytes' kernels; a bucket is one call each way."""

    def __init__(self) -> None:
        import bitsandbytes.functional as kernels

        self._kernels = kernels
        self._maps: dict[tuple[bool, torch.device], Tensor] = {}

    def load(self, name: str, states: list[State], like: list[Tensor]) -> list[Tensor]:
        """New fp32 tensors, zeros at first."""
        if name not in states[0]:
            return [torch.zeros_like(tensor) for tensor in like]
        codes, scales = torch.cat([state[name] for state in states]), torch.cat([state[f"{name}_scale"] for state in states])
        flat = self._kernels.dequantize_blockwise(codes, absmax=scales, code=self._map(name, codes.device), blocksize=BLOCK)
        pieces = flat.split([state[name].numel() for state in states])
        return [piece[: tensor.numel()].view(tensor.shape) for piece, tensor in zip(pieces, like, strict=True)]

    def store(self, name: str, states: list[State], values: list[Tensor]) -> None:
        lengths = [-(-value.numel() // BLOCK) * BLOCK for value in values]
        flat = torch.cat([_padded(value, length) for value, length in zip(values, lengths, strict=True)])
        codes, kept = self._kernels.quantize_blockwise(flat, code=self._map(name, flat.device), blocksize=BLOCK)
        scales = kept.absmax.split([length // BLOCK for length in lengths])
        for state, code, scale in zip(states, codes.split(lengths), scales, strict=True):
            state[name], state[f"{name}_scale"] = code.clone(), scale.clone()

    def _map(self, name: str, device: torch.device) -> Tensor:
        """What each code stands for. Squares have no sign."""
        signed = not name.endswith("_sq")
        if (signed, device) not in self._maps:
            self._maps[signed, device] = self._kernels.create_dynamic_map(signed=signed).to(device)
        return self._maps[signed, device]


def _padded(value: Tensor, length: int) -> Tensor:
    flat = value.reshape(-1)
    return flat if flat.numel() == length else torch.nn.functional.pad(flat, (0, length - flat.numel()))
