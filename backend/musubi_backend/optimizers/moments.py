"""How the averages of an optimizer are kept: in fp32, or in 8 bits."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Generator, Tensor

from .rounding import exact
from .rows import keep, kept, kept_like

BLOCK = 256
_SHIFT = 15  # of the bits of a fp32 number
_SMALLEST, _ONE = 105 << 8, 127 << 8  # 2^-22, under the smallest code, and 1
_NEGATIVE = 127  # of the codes with a sign
State = dict[str, Any]


class Keeper(Protocol):
    """Gives the averages of a bucket, [tensors, numbers], to compute with, and keeps what became of them. like: the tensors themselves."""

    def load(self, name: str, states: list[State], like: list[Tensor]) -> Tensor: ...

    def store(self, name: str, states: list[State], values: Tensor, seed: int) -> None: ...


class Whole:
    """In the dtype that is computed in, which is at least fp32."""

    def load(self, name: str, states: list[State], like: list[Tensor]) -> Tensor:
        """Zeros at first; what is written into it is kept."""
        return kept_like(states, name, like)

    def store(self, name: str, states: list[State], values: Tensor, seed: int) -> None:
        """Nothing to do."""


class EightBit:
    """One byte per number and one fp32 scale per 256, the largest of them: blockwise with a dynamic code (arXiv:2110.02861).

    Two things differ from the paper. Numbers are rounded by chance: an average of which a step changes a thousandth would never leave its
    code when rounded to the nearest, so squares could not fall. And of squares the root is kept, as small squares would be zeros, which
    the update is divided by. Weights that are updated together are coded together; a step waits for no number of the device.
    """

    def __init__(self) -> None:
        self._codes: dict[tuple[bool, torch.device], _Code] = {}

    def load(self, name: str, states: list[State], like: list[Tensor]) -> Tensor:
        """A copy, zeros at first."""
        first, count = like[0], len(like)
        if name not in states[0]:
            return first.new_zeros((count, first.numel()), dtype=exact(first.dtype))
        codes, scales = kept(states, name), kept(states, f"{name}_scale")
        values = self._code(name, codes.device).values.index_select(0, codes.view(-1).int()).view(count, -1, BLOCK)
        values.mul_(scales.unsqueeze(2))
        if _squares(name):
            values.square_()
        return values.view(count, -1)[:, : first.numel()].to(exact(first.dtype)).contiguous()

    def store(self, name: str, states: list[State], values: Tensor, seed: int) -> None:
        """seed: of the rounding; another one for each step."""
        count, length = values.shape
        blocks = torch.nn.functional.pad(values.float(), (0, -length % BLOCK)).view(-1, BLOCK)
        if _squares(name):
            blocks = blocks.sqrt()
        scales = blocks.abs().amax(1)
        share = (blocks / scales.clamp_min(torch.finfo(torch.float32).tiny).unsqueeze(1)).view(-1)
        codes = self._code(name, share.device).rounded(share, torch.Generator(share.device).manual_seed(seed))
        keep(states, name, codes.view(count, -1))
        keep(states, f"{name}_scale", scales.view(count, -1))

    def _code(self, name: str, device: torch.device) -> _Code:
        signed = not _squares(name)
        if (signed, device) not in self._codes:
            self._codes[signed, device] = _Code(signed, device)
        return self._codes[signed, device]


class _Code:
    """values: of the codes, from small to large."""

    def __init__(self, signed: bool, device: torch.device) -> None:
        self.values, self._zero = dynamic_code(signed, device), _NEGATIVE if signed else 0
        sizes = self._sizes = self.values[self._zero :]
        # the exponent and eight bits after it: at most one code begins in each
        buckets = torch.arange(_SMALLEST, _ONE + 1, dtype=torch.int32, device=device)
        below = torch.searchsorted(sizes, (buckets << _SHIFT).view(torch.float32), right=True) - 1
        self._below = below.clamp(0, len(sizes) - 2).int()

    def rounded(self, share: Tensor, chance: Generator) -> Tensor:
        """Codes of numbers from -1 to 1, each of the two next to it with the chance that makes the mean exact. There is none for -1."""
        size = share.abs()
        low = self._below.index_select(0, ((size.view(torch.int32) >> _SHIFT) - _SMALLEST).clamp_(min=0))
        low += self._sizes.index_select(0, low + 1) <= size
        low.clamp_(max=len(self._sizes) - 2)
        least, most = self._sizes.index_select(0, low), self._sizes.index_select(0, low + 1)
        drawn = torch.rand(size.shape, generator=chance, device=size.device)
        low += drawn * (most - least) < size - least
        return (self._zero + share.sign().int() * low).clamp_(min=0).to(torch.uint8)


def dynamic_code(signed: bool, device: torch.device | str = "cpu") -> Tensor:
    """What each of the 256 codes stands for, from small to large, in fp32: 0, 1 and the middles of equal parts of seven decades, twice as
    many parts in each as in the one below. Without a sign the parts are half as wide. Made on the device, as a step would wait for a copy
    of them."""
    middles = []
    for exponent in range(7):
        count = 2 ** (exponent + (not signed))
        parts = torch.arange(count, dtype=torch.float64, device=device)
        middles.append(parts.add_(0.5).mul_(0.9 / count).add_(0.1).mul_(10.0 ** (exponent - 6)))
    negative = [part.neg().flip(0) for part in reversed(middles)] if signed else []  # and none for -1
    return torch.cat([*negative, parts.new_zeros(1), *middles, parts.new_ones(1)]).float()


def _squares(name: str) -> bool:
    return name.endswith("_sq")
