"""What can be added to a frozen linear and trained: LoRA, LoHa and LoKr.

Names of parameters and buffers are musubi-tuner's, so that a network's `state_dict()` is a file's. Parameters are float32; what they add
is computed in the dtype of the input.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

if TYPE_CHECKING:
    from ..layers.linear import Linear


class LoRAModule(nn.Module):
    """An addition of scale * delta to one linear; `alpha` [] is stored, scale is alpha / rank.

    rank_dropout, module_dropout: in train mode, the share of ranks (LoRA, per sample) or output rows (the others) left out, and how
    often the whole LoRA module is.
    """

    alpha: Tensor

    def __init__(self, rank: int, alpha: float, rank_dropout: float | None = None, module_dropout: float | None = None) -> None:
        """alpha 0 means alpha = rank."""
        super().__init__()
        self.rank = rank
        alpha = float(alpha) or float(rank)
        self.scale = alpha / rank
        self.register_buffer("alpha", torch.tensor(alpha))
        self.rank_dropout = rank_dropout
        self.module_dropout = module_dropout

    @property
    def full_scale(self) -> float:
        """Scale at strength 1."""
        return self.alpha.item() / self.rank

    def is_skipped(self) -> bool:
        """True when this forward goes without the LoRA module (dropped as a whole)."""
        return bool(self.training and self.module_dropout and torch.rand(1).item() < self.module_dropout)

    def start(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """x [..., in] -> scale * delta @ x + bias, in rows [N, out]: see `layers.linear.Addition`."""
        raise NotImplementedError

    def start_for_both(self, x: Tensor, layer: Linear) -> Tensor | None:
        """See `layers.linear.Addition`."""
        return None

    def plus_parameters(self) -> list[nn.Parameter]:
        """Those that LoRA+ trains faster (`loraplus_lr_ratio`); the others have none."""
        return []

    def delta_norm(self) -> Tensor:
        """Frobenius norm of scale * delta, as a float32 number."""
        raise NotImplementedError

    def shrink(self, ratio: float) -> None:
        """Multiply delta by `ratio`. Called without gradients."""
        raise NotImplementedError

    def _finished(self, product: Tensor, bias: Tensor | None) -> Tensor:
        """scale * delta @ x [N, out] with rank_dropout on output rows, and the bias."""
        if self.training and self.rank_dropout:
            kept = (torch.rand(product.shape[-1], device=product.device) > self.rank_dropout) / (1.0 - self.rank_dropout)
            product = product * kept.to(product.dtype)
        return product if bias is None else product + bias

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: object) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args)
        self.scale = self.full_scale


class LoRA(LoRAModule):
    """delta = up @ down (arXiv 2106.09685): `lora_down.weight` [rank, in], `lora_up.weight` [out, rank]."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        rank: int,
        alpha: float,
        dropout: float | None = None,
        rank_dropout: float | None = None,
        module_dropout: float | None = None,
    ) -> None:
        """dropout acts on the rank-wide activations."""
        super().__init__(rank, alpha, rank_dropout, module_dropout)
        self.lora_down = _Factor(in_features, rank)
        self.lora_up = _Factor(rank, out_features)
        nn.init.kaiming_uniform_(self.lora_down.weight, a=5**0.5)
        nn.init.zeros_(self.lora_up.weight)
        self.dropout = dropout
        self.working: tuple[Tensor, Tensor] | None = None
        """Down and scale * up as a step computes with them (`lora.working`); outside of one they are made at each use."""

    def start(self, x: Tensor, bias: Tensor | None) -> Tensor:
        down, up = self._factors(x.dtype)
        hidden, factor = self.dropped(F.linear(x, down))
        rows = hidden.flatten(0, -2)
        return (rows * factor) @ up.t() if bias is None else torch.addmm(bias, rows, up.t(), alpha=factor)

    def start_for_both(self, x: Tensor, layer: Linear) -> Tensor | None:
        if self.training and (self.dropout or self.rank_dropout):
            return None
        start: Tensor = _StartForBoth.apply(x.flatten(0, -2), *self._factors(x.dtype), layer)  # type: ignore[no-untyped-call]
        return start

    def _factors(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Down, and scale * up."""
        if self.working is not None and self.working[0].dtype == dtype:
            return self.working
        up = self.lora_up.weight.to(dtype)
        return self.lora_down.weight.to(dtype), up if self.scale == 1.0 else up * self.scale

    def dropped(self, hidden: Tensor) -> tuple[Tensor, float]:
        """Activations [..., rank] after dropout, and the factor that makes up for the ranks left out."""
        factor = 1.0
        if self.training:
            if self.dropout:
                hidden = F.dropout(hidden, self.dropout)
            if self.rank_dropout:
                shape = (hidden.shape[0], *[1] * (hidden.ndim - 2), self.rank)
                hidden = hidden * (torch.rand(shape, device=hidden.device) > self.rank_dropout)
                factor /= 1.0 - self.rank_dropout
        return hidden, factor

    def plus_parameters(self) -> list[nn.Parameter]:
        return [self.lora_up.weight]

    def delta_norm(self) -> Tensor:
        """From two rank x rank products: |U D|^2 = sum((U^T U) * (D D^T))."""
        up, down = self.lora_up.weight.double(), self.lora_down.weight.double()
        squared = ((up.t() @ up) * (down @ down.t())).sum().clamp(min=0)
        return (squared.sqrt() * self.scale).float()

    def shrink(self, ratio: float) -> None:
        self.lora_up.weight.mul_(ratio**0.5)
        self.lora_down.weight.mul_(ratio**0.5)


class LoHa(LoRAModule):
    """delta = (w1_a @ w1_b) * (w2_a @ w2_b), element by element (arXiv 2108.06098): `hada_w*_a` [out, rank], `hada_w*_b` [rank, in]."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        rank: int,
        alpha: float,
        rank_dropout: float | None = None,
        module_dropout: float | None = None,
    ) -> None:
        super().__init__(rank, alpha, rank_dropout, module_dropout)
        self.hada_w1_a = nn.Parameter(torch.empty(out_features, rank))
        self.hada_w1_b = nn.Parameter(torch.empty(rank, in_features))
        self.hada_w2_a = nn.Parameter(torch.zeros(out_features, rank))
        self.hada_w2_b = nn.Parameter(torch.empty(rank, in_features))
        nn.init.normal_(self.hada_w1_a, std=0.1)
        nn.init.normal_(self.hada_w1_b)
        nn.init.normal_(self.hada_w2_b)

    def start(self, x: Tensor, bias: Tensor | None) -> Tensor:
        product: Tensor = _HadamardProduct.apply(
            x.flatten(0, -2), self.hada_w1_a, self.hada_w1_b, self.hada_w2_a, self.hada_w2_b, self.scale
        )  # type: ignore[no-untyped-call]
        return self._finished(product, bias)

    def delta_norm(self) -> Tensor:
        result: Tensor = (_hadamard(self.hada_w1_a, self.hada_w1_b, self.hada_w2_a, self.hada_w2_b) * self.scale).norm()
        return result

    def shrink(self, ratio: float) -> None:
        for factor in (self.hada_w1_a, self.hada_w1_b, self.hada_w2_a, self.hada_w2_b):
            factor.mul_(ratio**0.25)


class LoKr(LoRAModule):
    """delta = kron(w1, w2) (arXiv 2309.14859): `lokr_w1` [out_l, in_m] and `lokr_w2` [out_k, in_n], the latter as `lokr_w2_a` @
    `lokr_w2_b` of the rank unless that is at least half its longer side; then it is whole, and scale is 1.

    factor: which divisor of the sizes the smaller matrix gets; -1 makes both as equal as they can be.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        rank: int,
        alpha: float,
        rank_dropout: float | None = None,
        module_dropout: float | None = None,
        factor: int = -1,
    ) -> None:
        (in_m, in_n), (out_l, out_k) = factorised(in_features, factor), factorised(out_features, factor)
        whole = 2 * rank >= max(out_k, in_n)
        super().__init__(rank, rank if whole else alpha, rank_dropout, module_dropout)
        self.lokr_w1 = nn.Parameter(torch.empty(out_l, in_m))
        nn.init.kaiming_uniform_(self.lokr_w1, a=5**0.5)
        if whole:
            self.lokr_w2 = nn.Parameter(torch.zeros(out_k, in_n))
        else:
            self.lokr_w2_a = nn.Parameter(torch.empty(out_k, rank))
            self.lokr_w2_b = nn.Parameter(torch.zeros(rank, in_n))
            nn.init.kaiming_uniform_(self.lokr_w2_a, a=5**0.5)
        self.whole = whole

    def start(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """kron(w1, w2) @ x is w1 @ X @ w2.T with x as a matrix X [in_m, in_n]: the large matrix is never made."""
        first = self.lokr_w1.to(x.dtype)
        rows = x.flatten(0, -2).unflatten(-1, (first.shape[1], -1))
        product = (first @ self._by_second(rows)).flatten(-2) * self.scale
        return self._finished(product, bias)

    def delta_norm(self) -> Tensor:
        """|kron(a, b)| = |a| |b|."""
        second = self.lokr_w2 if self.whole else self.lokr_w2_a @ self.lokr_w2_b
        result: Tensor = self.lokr_w1.norm() * second.norm() * self.scale
        return result

    def shrink(self, ratio: float) -> None:
        self.lokr_w1.mul_(ratio**0.5)
        (self.lokr_w2 if self.whole else self.lokr_w2_a).mul_(ratio**0.5)

    @property
    def full_scale(self) -> float:
        return 1.0 if self.whole else super().full_scale

    def _by_second(self, rows: Tensor) -> Tensor:
        """rows [..., in_n] @ w2.T [..., out_k]"""
        if self.whole:
            return F.linear(rows, self.lokr_w2.to(rows.dtype))
        return F.linear(F.linear(rows, self.lokr_w2_b.to(rows.dtype)), self.lokr_w2_a.to(rows.dtype))


def factorised(size: int, factor: int) -> tuple[int, int]:
    """`size` as a product, the smaller number first: with `factor` where it divides; else the most equal two, none above `factor` (-1:
    no limit)."""
    if factor > 0 and size % factor == 0:
        return min(factor, size // factor), max(factor, size // factor)
    limit = size if factor < 0 else factor
    smaller = max(number for number in range(1, int(size**0.5) + 1) if size % number == 0 and number <= max(1, limit))
    return smaller, size // smaller


class _StartForBoth(torch.autograd.Function):
    """bias + x @ down.T @ up.T, for x [N, in]. Backward adds what x gets through the base product of `layer`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, down: Tensor, up: Tensor, layer: Linear) -> Tensor:
        hidden = x @ down.t()
        ctx.save_for_backward(x, down, up, hidden)
        ctx.layer = layer
        return hidden @ up.t() if layer.bias is None else torch.addmm(layer.bias, hidden, up.t())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        x, down, up, hidden = ctx.saved_tensors
        of_hidden = grad @ up
        for_x = ctx.layer.input_gradient(grad).addmm_(of_hidden, down) if ctx.needs_input_grad[0] else None
        for_down = of_hidden.t() @ x if ctx.needs_input_grad[1] else None
        return for_x, for_down, grad.t() @ hidden if ctx.needs_input_grad[2] else None, None


class _HadamardProduct(torch.autograd.Function):
    """x @ (scale * (a1 @ b1) * (a2 @ b2)).T, keeping x and the thin factors for backward, never a matrix of the linear's size."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, a1: Tensor, b1: Tensor, a2: Tensor, b2: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(x, a1, b1, a2, b2)
        ctx.scale = scale
        return F.linear(x, (_hadamard(a1, b1, a2, b2) * scale).to(x.dtype))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor, Tensor, Tensor, Tensor, None]:
        x, a1, b1, a2, b2 = ctx.saved_tensors
        first, second = a1 @ b1, a2 @ b2
        for_x = grad @ (first * second * ctx.scale).to(grad.dtype) if ctx.needs_input_grad[0] else None
        for_delta = (grad.flatten(0, -2).t() @ x.flatten(0, -2)).to(a1.dtype) * ctx.scale
        for_first, for_second = for_delta * second, for_delta * first
        return for_x, for_first @ b1.t(), a1.t() @ for_first, for_second @ b2.t(), a2.t() @ for_second, None


def _hadamard(a1: Tensor, b1: Tensor, a2: Tensor, b2: Tensor) -> Tensor:
    return (a1 @ b1) * (a2 @ b2)


class _Factor(nn.Module):
    """One matrix [out, in] of a LoRA module, not yet filled."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_features, in_features))
