"""Batches that pass the blocks together learn what they learn one after the other, and a swapped block is fetched once for all of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from musubi_backend.layers import recompute
from musubi_backend.layers.blocks import Checkpointed, KeptAttention, Prepared
from musubi_backend.layers.by_block import Pass, by_block
from musubi_backend.layers.random_states import RandomStates
from musubi_backend.memory.streaming import BlockStream
from musubi_backend.memory.w8a8 import FORMATS
from recorded_models import EVERY, Case, inputs, loaded, with_lora
from torch import Tensor

CPU = torch.device("cpu")


class Model:
    """A family's recorded transformer with its LoRA and three batches: the recorded one, one of a single frame, one of other numbers."""

    def __init__(self, case: Case, golden: Path, dtype: torch.dtype, held: str, **switches: Any) -> None:
        eight = held if held in FORMATS else ""
        self.model, self.dtype = loaded(case, golden, held == "fp8_base", eight), dtype
        if not held:
            self.model.to(dtype)
        self.model.requires_grad_(False)
        self.network = with_lora(self.model, case, golden).train()
        for name, value in switches.items():
            setattr(self.model, name, value)
        stream = BlockStream([block for part in self.model.block_lists() for block in part], CPU, ring=1)
        given = inputs(case, golden)
        short = tuple(one[:, :, :1] if number == 0 else one[:, :1] if number == 7 else one for number, one in enumerate(given))
        self.batches: list[tuple[Any, ...]] = [given, short, (given[0] * 0.5, given[1] * 0.7, *given[2:])]
        self.fetched = 0
        stream.transfers.start = self._counted(stream.transfers.start)  # type: ignore[method-assign]

    def _counted(self, start: Callable[..., Any]) -> Callable[..., Any]:
        def counted(memory: Tensor, buffer: Tensor) -> Any:
            self.fetched += memory.nbytes
            return start(memory, buffer)

        return counted

    def step(self, run: Callable[[Model], None]) -> list[Tensor]:
        self.network.zero_grad()
        self.fetched = 0
        run(self)
        return [parameter.grad for parameter in self.network.parameters() if parameter.grad is not None]


def _go_back(prediction: Tensor) -> None:
    prediction.square().mean().backward()


def one_after_the_other(small: Model) -> None:
    for number, batch in enumerate(small.batches):
        torch.manual_seed(number)
        with small.network.working_in(small.dtype):
            _go_back(small.model(*batch))


def together(small: Model) -> None:
    passes = []
    for number, batch in enumerate(small.batches):
        torch.manual_seed(number)
        passes.append(Pass(lambda batch=batch: small.model.prepared(*batch), RandomStates.now(CPU), _go_back))  # type: ignore[misc]
    with small.network.working_in(small.dtype) as gather:
        by_block(small.model, passes, gather)


OFFLOADED = {"gradient_checkpointing": True, "gradient_checkpointing_cpu_offload": True, "kept_attention": KeptAttention(1, 1)}
"""Blocks whose inputs wait in system RAM, one with its attention on the device and one with it in system RAM."""


@pytest.mark.parametrize(
    ("name", "dtype", "held", "switches"),
    [
        *((name, torch.bfloat16, "", OFFLOADED) for name in EVERY),
        ("hunyuan_video", torch.float32, "", {}), ("framepack", torch.float32, "fp8_base", {"gradient_checkpointing": True}),
        ("wan", torch.float32, "int8", {"gradient_checkpointing": True}),
    ],
)  # fmt: skip
def test_gradients_are_equal_to_the_last_bit_and_copies_divided_by_the_number_of_batches(
    name: str, dtype: torch.dtype, held: str, switches: dict[str, Any], shared: Path
) -> None:
    small = Model(EVERY[name], shared / "golden" / "dit", dtype, held, **switches)
    for module in small.network.lora_modules():
        module.dropout = 0.3  # type: ignore[assignment]
    small.step(one_after_the_other)  # from then on every step begins as it ends
    expected = small.step(one_after_the_other)
    copied = small.fetched
    gradients = small.step(together)
    assert all(map(torch.equal, gradients, expected)) and len(gradients) == len(expected) > 0
    assert copied == len(small.batches) * small.fetched > 0


class Three(Checkpointed):
    def __init__(self) -> None:
        super().__init__()
        self.gradient_checkpointing = True
        self.blocks = torch.nn.ModuleList(torch.nn.Linear(2, 2) for _ in range(3))

    def prepared(self) -> Prepared:
        return Prepared(self.blocks, torch.ones(1, 2), (), lambda x: x)


def test_what_waits_in_system_ram_is_asked_for_one_ahead_of_the_batch_that_comes_back_next(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    made: list[recompute._Recording] = []
    make, fetch = recompute._Recording.__init__, recompute._Recording.fetch

    def remembering(self: recompute._Recording, *given: Any) -> None:
        make(self, *given)
        made.append(self)

    monkeypatch.setattr(recompute._Recording, "__init__", remembering)
    monkeypatch.setattr(recompute._Recording, "fetch", lambda self: (asked.append(made.index(self)), fetch(self)))
    model = Three()
    by_block(model, [Pass(model.prepared, RandomStates.now(CPU), _go_back)] * 2, lambda: None)
    assert asked[:-1] == [2, 3, 3, 0, 0, 1, 1]  # of blocks 0, 0, 1, 1: its own, then the next one's
