"""What a GPU would be asked for in a block: operations that launch a kernel, and the bytes that those move that are no product.

Counted on the device "meta", at real sizes. RMS norm and attention, which CUDA has kernels for and this device takes to pieces, count as
one forward and one backward.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from musubi_backend import architectures
from musubi_backend.layers.blocks import run_block
from musubi_backend.lora.network import LoRANetwork
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

sys.path.insert(0, str(Path(__file__).parents[2]))
from benchmarks import gpu_models

_PRODUCTS = ("mm", "addmm", "addmm_", "bmm", "baddbmm", "_int_mm", "_scaled_mm")
_NO_KERNEL = ("empty", "detach", "new_empty", "lift_fresh", "_unsafe_view")


class Kernels(TorchDispatchMode):
    """launches: of each operation. moved: bytes read and written by all but products and attention."""

    def __init__(self) -> None:
        super().__init__()
        self.launches: Counter[str] = Counter()
        self.moved = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func._schema.name.removeprefix("aten::")
        if not _is_view(func) and not name.startswith(_NO_KERNEL):
            if name == "addmm" and args[0].ndim == 2:  # what is added to is copied first, and the product added to the copy
                self.count("copy_", 2 * args[0].nbytes)
            self.count(name, 0 if name in _PRODUCTS or "attention" in name else sum(one.nbytes for one in _tensors((args, result))))
        return result

    def count(self, name: str, moved: int) -> None:
        self.launches[name] += 1
        self.moved += moved


class _OneKernel(torch.autograd.Function):
    """Stands for a fused kernel: shapes of its result and its gradients, and what autograd keeps for it."""

    @staticmethod
    def forward(ctx: Any, kernels: Kernels, name: str, moves: bool, *inputs: Tensor) -> Tensor:
        result = torch.empty_like(inputs[0])
        ctx.kernels, ctx.name, ctx.moves = kernels, name, moves
        ctx.save_for_backward(*inputs, *([] if moves else [result]))
        kernels.count(name, moves * (inputs[0].nbytes + result.nbytes))
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        inputs = ctx.saved_tensors[: len(ctx.needs_input_grad) - 3]
        ctx.kernels.count(f"{ctx.name}_backward", ctx.moves * (grad.nbytes + 2 * inputs[0].nbytes))
        wanted = zip(inputs, ctx.needs_input_grad[3:], strict=True)
        return None, None, None, *(torch.empty_like(one) if needs else None for one, needs in wanted)


def of_blocks(name: str) -> dict[str, tuple[int, float]]:
    """A block of each kind of a model (`benchmarks.gpu_models.MODELS`) with a LoRA: forward, computed again, and backward, in a training's
    step. By class: launches, and the bytes that they move besides products and attention, as multiples of the block's input."""
    model = next(one for one in gpu_models.MODELS if one.name == name).with_layers(1)
    with torch.device("meta"):
        made: Any = model.make(model.geometry).to(torch.bfloat16).requires_grad_(False).eval()
    network = LoRANetwork.create(made, architectures.cards()[model.card_id], gpu_models.LORA_RANK, gpu_models.LORA_ALPHA).train()
    seen: list[tuple[nn.Module, tuple[Any, ...]]] = []
    for blocks in made.block_lists():
        blocks[0].register_forward_pre_hook(lambda block, given: seen.append((block, given)))
    latents, _ = gpu_models.latents(gpu_models.SHORT, torch.device("meta"))
    with torch.no_grad():
        model.call(made, latents.to(torch.bfloat16), torch.tensor([500.0]))
    return {type(block).__name__: _count(block, network, *given) for block, given in list(seen)}


def _count(block: nn.Module, network: LoRANetwork, x: Tensor, *shared: Any) -> tuple[int, float]:
    kernels = Kernels()

    def norm(x: Tensor, width: Any, weight: Tensor, eps: float) -> Any:
        return _OneKernel.apply(kernels, "rms_norm", True, x, weight)  # type: ignore[no-untyped-call]

    def attention(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None) -> Any:
        return _OneKernel.apply(kernels, "attention", False, q, k, v)  # type: ignore[no-untyped-call]

    with ExitStack() as stack:
        stack.enter_context(patch.object(F, "rms_norm", norm))
        stack.enter_context(patch.object(F, "scaled_dot_product_attention", attention))
        stack.enter_context(network.working_in(torch.bfloat16))
        stack.enter_context(kernels)
        out = run_block(block, x.detach().requires_grad_(), *shared, recompute=True)
        out.backward(torch.empty_like(out))
    return kernels.launches.total(), round(kernels.moved / x.nbytes, 1)


def _is_view(func: Any) -> bool:
    returns = func._schema.returns
    return bool(returns) and all(one.alias_info is not None and not one.alias_info.is_write for one in returns)


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for one in value:
            yield from _tensors(one)
