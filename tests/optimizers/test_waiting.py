"""A step of ours waits for nothing that is on a device: no number of it is read, and nothing is copied to it or from it."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from musubi_backend.optimizers import registry
from musubi_backend.optimizers.entry import Entry
from musubi_backend.optimizers.hina import AdaptiveHinaAdamW
from musubi_backend.optimizers.staged import StagedAdamW
from musubi_backend.training import optimizers
from musubi_backend.training.settings import OptimizerSettings
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

READS = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "equal.default", "lift_fresh")
HOST = {torch.Tensor.tolist, torch.Tensor.item, torch.Tensor.__bool__, torch.Tensor.__float__, torch.Tensor.__int__, torch.Tensor.numpy}
SHAPES = ((4, 6), (6, 4), (3,), (), (2, 3, 1, 1), (1, 1))
KINDS = (*((shape, torch.float32) for shape in SHAPES), *((shape, torch.bfloat16) for shape in SHAPES[:2]))
NAMES = ("lora_down.weight", "lora_up.weight", "bias", "scale", "conv", "gate")
EVERYTHING = {"use_agr": True, "use_orthogonal_grad": True, "use_tam": True, "use_cautious": True, "use_spd": True}
SHORT = {"relationship_discovery_interval": 2, "warmup_steps": 3}


class Kernels(TorchDispatchMode):
    """waits: what a device would be waited for, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, given = str(function), kwargs or {}
        chosen = name.startswith(("aten.index.", "aten.index_put")) and any(one is not None and one.dtype == torch.bool for one in args[1])
        copied = "_to_copy" in name and given.get("device") not in (None, args[0].device)
        self.waits[name] += any(read in name for read in READS) or chosen or copied
        return function(*args, **given)


class Methods(TorchFunctionMode):
    """The ways to read a tensor that are no kernels."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: Counter[str] = Counter()

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.waits[function.__name__] += function in HOST
        return function(*args, **(kwargs or {}))


def waits(entry: Entry, extra: dict[str, Any]) -> dict[str, int]:
    """What a device would be waited for in four steps, of weights of every kind."""
    listed = {argument.name for argument in entry.arguments}
    arguments = {name: value for name, value in (SHORT | extra).items() if name in listed}
    weights = [torch.nn.Parameter(torch.rand(shape).to(dtype)) for shape, dtype in KINDS]
    names = {id(weight): f"{place // 6}_x.{NAMES[place % 6]}" for place, weight in enumerate(weights)}
    settings = OptimizerSettings(optimizer_type=entry.name, optimizer_args=tuple(f"{name}={value!r}" for name, value in arguments.items()))
    made = optimizers.build(settings, 1e-3, [{"params": weights[:2]}, {"params": weights[2:]}], names).optimizer
    kernels, methods = Kernels(), Methods()
    for _ in range(4):
        for weight in weights:
            weight.grad = torch.rand_like(weight)
        with methods, kernels:
            made.step()
    return {name: count for name, count in (kernels.waits + methods.waits).items() if count}


@pytest.mark.parametrize(
    ("entry", "legacy"),
    [(entry, legacy) for entry in registry.ENTRIES if entry.ours and not entry.needs for legacy in (False, True)
     if not legacy or any(argument.name == "legacy" for argument in entry.arguments)],
    ids=lambda one: one.name if isinstance(one, Entry) else "legacy" * one,
)  # fmt: skip
def test_a_step_reads_no_number_of_the_device_and_copies_nothing(entry: Entry, legacy: bool) -> None:
    assert waits(entry, EVERYTHING | {"legacy": legacy}) == {}


def test_pairs_without_names_are_waited_for_once_at_their_interval() -> None:
    weights = [torch.nn.Parameter(torch.rand(shape)) for shape in ((4, 6), (6, 4))]
    optimizer, seen = AdaptiveHinaAdamW(weights, relationship_discovery_interval=2), []
    for _ in range(4):
        for weight in weights:
            weight.grad = torch.rand_like(weight)
        with Methods() as methods:
            optimizer.step()
        seen.append(methods.waits["tolist"])
    assert seen == [0, 1, 0, 1]


def test_what_was_0_when_the_optimizer_was_made_has_no_anchor_unless_it_was_written_to_before_the_first_step() -> None:
    empty, later, filled = (torch.nn.Parameter(torch.full((2, 3), value)) for value in (0.0, 0.0, 1.0))
    optimizer = StagedAdamW([empty, later, filled], use_spd=True)
    with torch.no_grad():
        later.fill_(2.0)
    for weight in (empty, later, filled):
        weight.grad = torch.ones_like(weight)
    optimizer.step()
    assert ["anchor" in optimizer.state[weight] for weight in (empty, later, filled)] == [False, True, True]
