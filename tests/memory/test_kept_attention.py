"""Attention whose output is kept runs once, in compiled blocks too, and the gradients are those of plain checkpointing to the last bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from musubi_backend.layers import attention_operator
from musubi_backend.layers.attention import attention, with_compiler
from musubi_backend.layers.attention_operator import operator
from musubi_backend.layers.blocks import Checkpointed, KeptAttention, Prepared
from musubi_backend.layers.by_block import Pass, by_block
from musubi_backend.layers.random_states import RandomStates
from musubi_backend.layers.recompute import Tier, once, outputs_once, recomputed
from recorded_models import EVERY, inputs, loaded, with_lora
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch._subclasses import FakeTensorMode


class Step(NamedTuple):
    gradients: list[Tensor]
    attentions: int


@pytest.fixture
def count_attention(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Shapes of the queries of every attention of tokens to themselves."""
    ran: list[tuple[int, ...]] = []
    original = F.scaled_dot_product_attention

    def counted(q: Tensor, k: Tensor, v: Tensor, *more: Any, **named: Any) -> Tensor:
        if k.shape == q.shape:
            ran.append(tuple(q.shape))
        return original(q, k, v, *more, **named)

    monkeypatch.setattr(F, "scaled_dot_product_attention", counted)
    return ran


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("name", EVERY)
def test_no_attention_runs_twice_and_no_bit_changes(
    name: str, dtype: torch.dtype, shared: Path, count_attention: list[tuple[int, ...]]
) -> None:
    case, golden = EVERY[name], shared / "golden" / "dit"
    model = loaded(case, golden).to(dtype).requires_grad_(False)
    network, given = with_lora(model, case, golden), inputs(case, golden)
    model.gradient_checkpointing = True

    def step(kept: KeptAttention) -> Step:
        count_attention.clear()
        model.kept_attention = kept
        network.zero_grad()
        model(*given).square().mean().backward()
        return Step([parameter.grad.clone() for parameter in network.parameters() if parameter.grad is not None], len(count_attention))

    again = sum(map(len, model.block_lists())) - 1
    plain, some, all_of_them = step(KeptAttention()), step(KeptAttention(1, 0)), step(KeptAttention(0, 1000))
    assert (plain.attentions - some.attentions, plain.attentions - all_of_them.attentions) == (1, again)
    for one in (some, all_of_them):
        assert all(map(torch.equal, one.gradients, plain.gradients)) and len(one.gradients) == len(plain.gradients) > 0


def test_the_last_blocks_keep_theirs_on_the_device_and_those_before_them_in_system_ram() -> None:
    tiers = [KeptAttention(1, 2).tier(following) for following in (3, 2, 1, 0)]
    assert tiers == [Tier.RECOMPUTED, Tier.IN_RAM, Tier.IN_RAM, Tier.ON_DEVICE]


@pytest.mark.parametrize(("function", "runs"), [(torch.sigmoid, 1), (lambda x: x.sin().cos().sin().exp(), 2)], ids=["little", "much"])
def test_a_result_is_kept_where_backward_needs_little_besides(function: Callable[[Tensor], Tensor], runs: int) -> None:
    ran = []

    def counted(x: Tensor) -> Tensor:
        ran.append(1)
        return function(x)

    x = torch.linspace(-1, 1, 6).requires_grad_()
    recomputed(lambda x: once(counted, x * 2).square(), x, tier=Tier.ON_DEVICE).sum().backward()
    again = x.detach().clone().requires_grad_()
    function(again * 2).square().sum().backward()
    assert len(ran) == runs and torch.equal(x.grad, again.grad)  # type: ignore[arg-type]


def test_a_compiler_may_change_the_order_of_what_need_not_wait_for_each_other() -> None:
    runs = iter([((0, 1), 10.0), ((1, 0), 20.0)])
    seen: list[dict[int, float]] = []

    def function(x: Tensor) -> Tensor:
        order, added = next(runs)
        seen.append({number: outputs_once(lambda number=number: (torch.tensor(added + number),), number)[0].item() for number in order})
        return x * x

    recomputed(function, torch.ones(1, requires_grad=True), tier=Tier.ON_DEVICE).sum().backward()
    assert seen == [{0: 10.0, 1: 11.0}] * 2


class Attending(nn.Module):
    """Two attentions that do not wait for each other, as of text and image, and one that waits for both."""

    def __init__(self) -> None:
        super().__init__()
        self.take, self.mode = nn.Linear(8, 8), with_compiler("torch")

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        heads = self.take(x).unflatten(-1, (2, 4))
        one = attention(heads, heads, x.unflatten(-1, (2, 4)), self.mode, bias)
        two = attention(heads.sin(), heads, x.unflatten(-1, (2, 4)), self.mode, number=1)
        both = (one + two).unflatten(-1, (2, 4))
        return x + attention(both, both, both, self.mode)


class Four(Checkpointed):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.gradient_checkpointing = True
        self.blocks = nn.ModuleList(Attending() for _ in range(4))

    def prepared(self, x: Tensor, bias: Tensor) -> Prepared:
        return Prepared(self.blocks, x, (bias,), lambda x: x)


@pytest.fixture
def count_operator(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Shapes of the queries of every attention that the operator computes; a compiler only asks it for shapes."""
    ran: list[tuple[int, ...]] = []
    original = attention_operator._forward

    def counted(q: Tensor, *more: Any) -> Any:
        if type(q) is Tensor:
            ran.append(tuple(q.shape))
        return original(q, *more)

    monkeypatch.setattr(attention_operator, "_forward", counted)
    return ran


def _alone(model: Four, batches: list[tuple[Tensor, Tensor]]) -> None:
    for batch in batches:
        model(*batch).square().mean().backward()


def _by_block(model: Four, batches: list[tuple[Tensor, Tensor]]) -> None:
    passes = [Pass(lambda one=one: model.prepared(*one), RandomStates.now(one[0].device), _to_loss) for one in batches]  # type: ignore[misc]
    by_block(model, passes, lambda: None)


def _to_loss(prediction: Tensor) -> None:
    prediction.square().mean().backward()


@pytest.mark.parametrize(
    "backend", ["eager", pytest.param("aot_eager", marks=pytest.mark.full(reason="as eager, with compiled gradients"))]
)
def test_compiled_blocks_keep_theirs_too_in_one_piece_and_compiled_once(backend: str, count_operator: list[tuple[int, ...]]) -> None:
    """Bits of plain checkpointing, whatever is kept where, with batches by block too; nothing is compiled again for it."""
    generator = torch.Generator().manual_seed(1)
    drawn = [(torch.randn(2, 5, 8, generator=generator), torch.randn(2, 1, 1, 5, generator=generator)) for _ in range(2)]
    torch._dynamo.reset()
    graphs: list[int] = []

    def step(model: Four, kept: KeptAttention, run: Callable[[Four, Any], None]) -> Step:
        count_operator.clear()
        model.kept_attention = kept
        model.zero_grad()
        run(model, [(x.clone().requires_grad_(), bias) for x, bias in drawn])
        graphs.append(counters["stats"]["unique_graphs"])
        return Step([parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None], len(count_operator))

    plain = step(Four(), KeptAttention(), _alone)
    compiled = Four()
    for block in compiled.blocks:
        block.compile(backend=backend, fullgraph=True)
    counters.clear()
    for kept, run, again in ((0, 0), _alone, 3), ((1, 1), _alone, 1), ((0, 9), _by_block, 0), ((9, 0), _alone, 0):
        one = step(compiled, KeptAttention(*kept), run)
        assert one.attentions == 2 * 3 * (4 + again)
        assert all(map(torch.equal, one.gradients, plain.gradients)) and len(one.gradients) == len(plain.gradients) > 0
    assert 0 < graphs[1] == graphs[-1]
    torch._dynamo.reset()


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("capability", "dtype", "width"), [((8, 0), "bfloat16", 33), ((7, 5), "float16", 64), ((8, 6), "float32", 64)])
def test_every_kernel_of_a_gpu_knows_its_shapes_and_its_backward(
    capability: tuple[int, int], dtype: str, width: int, bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By PyTorch's own rules for its kernels; nothing is computed. width: of the sums, which the memory-efficient kernel fills up."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    monkeypatch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: True)
    with FakeTensorMode():
        q, k, v = (torch.empty(2, 33, 3, 16, dtype=getattr(torch, dtype), device="cuda").transpose(1, 2) for _ in range(3))
        given = q, k, v, torch.zeros(2, 1, 1, 33, dtype=q.dtype, device="cuda") if bias else None
        out, sums, *more = operator(*given, 0)
        grads = attention_operator._backward(SimpleNamespace(saved_tensors=(*given, out, sums, *more)), torch.empty_like(out))
    assert (out.shape, out.stride()) == (q.shape, q.stride()) and sums.shape == (2, 3, 64 if bias else width)
    assert [None if one is None else one.shape for one in grads] == [q.shape] * 3 + [None] * 2
