"""Frozen linears whose weights are fp8, made dense for each product; LoRAs train through them.

The quantisation is musubi-tuner's `fp8_scaled`: e4m3 with one scale per 64 weights of a row (arXiv 2209.05433 has the format).
"""

from __future__ import annotations

from functools import cache
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from ..layers.linear import Linear
from ..weights.scales import EIGHT_BIT_DTYPES, SMALLEST_SCALE, dequantised

BLOCK = 64
Scaling: TypeAlias = Literal["none", "block", "tensor"]

_STORED = torch.float8_e4m3fn
_LARGEST = torch.finfo(_STORED).max
_AT_ONCE = 2**22  # weights that are quantised at a time
_FAST_MULTIPLE = 16  # sizes that fp8 products want


def quantise(weight: Tensor, scaling: Scaling = "block") -> tuple[Tensor, Tensor | None]:
    """weight [out, in] of any dtype -> (e4m3 weight, scale in weight's dtype) with weight ~ e4m3 * scale.

    scaling: "block" gives a scale [out, in / 64, 1], or [out, 1] where `in` is no multiple of 64; "tensor" one scale [1]; "none"
    casts (values beyond 448 become 448, small ones vanish).
    """
    stored = torch.empty(weight.shape, dtype=_STORED, device=weight.device)
    scale = None if scaling == "none" else torch.empty(_scale_shape(weight, scaling), dtype=weight.dtype, device=weight.device)
    rows = max(1, _AT_ONCE * len(weight) // max(1, weight.numel()))
    parts = [slice(start, start + rows) for start in range(0, len(weight), rows)]  # float32 copies of all would be larger than the weight
    if scale is not None and scale.ndim == 1:
        scale.copy_(_scale(torch.stack([weight[part].abs().amax() for part in parts]).amax()))
    for part in parts:
        values = weight[part].to(torch.float32, copy=True)
        if scale is not None:
            grouped = values.unflatten(1, (scale.shape[1], -1)) if scale.ndim == 3 else values
            if scale.ndim > 1:
                scale[part] = _scale(grouped.abs().amax(-1, keepdim=True).to(weight.dtype))
            grouped.div_((scale[part] if scale.ndim > 1 else scale).float()).nan_to_num_(0.0)
        stored[part] = values.clamp_(-_LARGEST, _LARGEST)
    return stored, scale


def _scale_shape(weight: Tensor, scaling: Scaling) -> tuple[int, ...]:
    if scaling == "tensor" or weight.ndim != 2:
        return (1,)
    return (len(weight), 1) if weight.shape[1] % BLOCK else (len(weight), weight.shape[1] // BLOCK, 1)


def _scale(largest: Tensor) -> Tensor:
    """In the weight's dtype, so that dividing and multiplying use the same scale."""
    return (largest / _LARGEST).clamp(min=SMALLEST_SCALE)


class Fp8Linear(Linear):
    """A frozen linear with `weight` in fp8 and, unless plainly cast, `scale_weight` to multiply it by.

    fast: also round the input to fp8, per row, and multiply in fp8 where the sizes allow. For generating only. apart: a compiler is to
    leave making it dense to PyTorch, where it has no code for fp8 itself.
    """

    scale_weight: Tensor | None

    def __init__(
        self, in_features: int, out_features: int, bias: bool = True, *, scaling: Scaling = "block", fast: bool = False, apart: bool = False
    ) -> None:
        super().__init__(in_features, out_features, bias)
        self.register_buffer("scale_weight", None)
        self.scaling, self.fast = scaling, fast
        self.apart = _operation() if apart else None
        self.keeps_weight = False

    @classmethod
    def like(cls, linear: nn.Linear, scaling: Scaling, fast: bool = False, apart: bool = False) -> Fp8Linear:
        """An empty one of the same sizes, on the same device."""
        with linear.weight.device:
            empty = cls(linear.in_features, linear.out_features, linear.bias is not None, scaling=scaling, fast=fast, apart=apart)
            return empty.requires_grad_(False)

    def stored(self, weight: Tensor, scale: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """What this layer keeps of a weight: fp8 as they are, others quantised."""
        if weight.dtype in EIGHT_BIT_DTYPES:
            return weight, scale
        return quantise(weight if scale is None else dequantised(weight, scale, torch.float32), self.scaling)

    def take(self, weight: Tensor, scale: Tensor | None, device: torch.device) -> Tensor:
        kept, scale = self.stored(weight, scale)
        self.scale_weight = None if scale is None else scale.to(device)
        return kept

    def dtype_of(self, stored: torch.dtype) -> torch.dtype:
        return stored if stored in EIGHT_BIT_DTYPES else _STORED

    def dense(self, dtype: torch.dtype) -> Tensor:
        if self.apart is not None and torch.compiler.is_compiling():
            made: Tensor = self.apart(self.weight, self.scale_weight, dtype)
            return made
        return dequantised(self.weight, self.scale_weight, dtype)

    def product(self, x: Tensor, start: Tensor | None) -> Tensor:
        if self.fast and self._can_multiply_in_fp8():
            return self._fast_product(x, start)
        return super().product(x, start)

    def _can_multiply_in_fp8(self) -> bool:
        scale = self.scale_weight
        fitting = self.in_features % _FAST_MULTIPLE == 0 and self.out_features % _FAST_MULTIPLE == 0
        return fitting and self.weight.dtype == _STORED and (scale is None or scale.numel() == 1)

    def _fast_product(self, x: Tensor, start: Tensor | None) -> Tensor:
        """x * (row scale) -> fp8; product with the weight's scale; times the row scale, added to what there is."""
        rows = x.flatten(0, -2)
        row_scale = (rows.abs().amax(-1, keepdim=True).float() / _LARGEST).clamp(min=1e-12)
        one = torch.ones((), device=x.device)
        scale = one if self.scale_weight is None else self.scale_weight.float().reshape(())
        # an unscaled row may reach 448 times its real size, which float16 does not hold
        out_dtype = torch.bfloat16 if x.dtype == torch.float16 else x.dtype
        small = (rows / row_scale).to(_STORED)
        product = torch._scaled_mm(small, self.weight.t(), scale_a=one, scale_b=scale, out_dtype=out_dtype)
        result = product * row_scale
        added = self.bias if start is None else start
        return (result if added is None else result + added).to(x.dtype).view(*x.shape[:-1], self.out_features)

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: object) -> None:
        scale = state_dict.get(f"{prefix}scale_weight")
        if scale is not None and self.scale_weight is None:
            self.scale_weight = torch.empty_like(scale)
        super()._load_from_state_dict(state_dict, prefix, *args)


@cache
def _operation() -> Any:
    """`dequantised` as one operation, which a compiler does not look into: triton has no e4m3 on GPUs before RTX 40."""
    whole = torch.library.custom_op(
        "musubi_backend::dequantised", dequantised, mutates_args=(), schema="(Tensor weight, Tensor? scale, ScalarType dtype) -> Tensor"
    )
    whole.register_fake(lambda weight, scale, dtype: torch.empty_like(weight, dtype=dtype))
    return torch.ops.musubi_backend.dequantised.default


def hold_in_fp8(model: nn.Module, names: list[str], scaling: Scaling, fast: bool = False, apart: bool = False) -> None:
    """Put an empty `Fp8Linear` in the place of each linear in `names` (module paths); loading fills them."""
    for name in names:
        parent, _, leaf = name.rpartition(".")
        linear = model.get_submodule(name)
        assert isinstance(linear, nn.Linear)
        model.get_submodule(parent)._modules[leaf] = Fp8Linear.like(linear, scaling, fast, apart)
