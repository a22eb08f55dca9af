"""Five hundred damaged parts of a state, and five hundred damaged positions: restored, or rejected in one sentence; a step can follow."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from musubi_backend.errors import UserError
from musubi_backend.training import saved_states
from musubi_backend.training.saved_states import Position
from musubi_backend.training.state import TrainingState
from torch import nn

Seed = random.Random
ODD: list[Any] = [None, True, False, -1, 0, 10**30, 1e999, float("nan"), "x", "", [], [1], {}, {"a": 1}, (1, 2), torch.ones(2)]


def fresh() -> TrainingState:
    """A network of two layers in the middle of its training."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.9**step)
    return TrainingState(
        network, optimizer, schedule, None, Position(1, 0, 1, 1), [0.5], [0.5], 7, {"settings": {"optimizer_type": "AdamW"}}
    )


def step(state: TrainingState) -> None:
    state.network(torch.ones(1, 3)).sum().backward()
    state.optimizer.step()
    state.schedule.step()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    state = fresh()
    step(state)
    state.save(tmp_path / "cat-state")
    return tmp_path / "cat-state"


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in nested dicts and lists."""
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in entries:
        yield (*at, key)
        yield from places(inner, (*at, key))


def odd_tensor(tensor: torch.Tensor, source: Seed) -> Any:
    changes: list[Callable[[torch.Tensor], torch.Tensor]] = [
        lambda t: t.flatten()[:1].clone(), lambda t: t.double(), lambda t: t.half(), lambda t: t.unsqueeze(0),
        lambda t: torch.full_like(t, torch.nan),
        lambda t: t.new_zeros(()).expand(t.shape), lambda t: torch.zeros(0), lambda t: t.bool(),
        lambda t: torch.full_like(t, -5), lambda t: t.to_sparse() if t.ndim else t,
    ]  # fmt: skip
    return source.choice(changes)(tensor)


def changed(values: Any, source: Seed) -> Any:
    """A copy with one place changed, removed, or renamed."""
    values = copy.deepcopy(values)
    *way, last = source.choice(list(places(values)))
    inside = values
    for key in way:
        inside = inside[key]
    if isinstance(inside[last], torch.Tensor) and source.random() < 0.7:
        inside[last] = odd_tensor(inside[last], source)
    elif isinstance(inside, dict) and source.random() < 0.3:
        inside[source.choice(["x", 99, -1])] = inside.pop(last)
    else:
        inside[last] = source.choice(ODD)
    return values


def test_parts_of_a_state(folder: Path) -> None:
    source, refused = random.Random(23), 0
    saved = saved_states.read(folder)
    names = (saved_states.OPTIMIZER_FILE, saved_states.SCHEDULER_FILE)
    parts = {name: torch.load(folder / name, weights_only=True) for name in names}
    for number in range(500):
        name = names[number % 5 == 0]
        torch.save(changed(parts[name], source), folder / name)
        state = fresh()
        try:
            state.restore(saved)
        except UserError as error:
            assert f"--resume {folder}" in str(error)
            refused += 1
        else:
            step(state)
        torch.save(parts[name], folder / name)
    assert refused > 250


def test_positions(folder: Path) -> None:
    source, refused = random.Random(29), 0
    path = folder / saved_states.POSITION_FILE
    whole = json.loads(path.read_text())
    odd = [value for value in ODD if not isinstance(value, torch.Tensor)]
    for number in range(500):
        values = copy.deepcopy(whole)
        *way, last = source.choice(list(places(values)))
        inside = values
        for key in way:
            inside = inside[key]
        inside[last] = source.choice(odd)
        text = json.dumps(values).encode()
        path.write_bytes(text[: source.randrange(len(text))] if number % 10 == 0 else text)
        try:
            found = saved_states.read(folder, whole=True)
        except UserError:
            refused += 1
            continue
        assert 0 <= found.step <= 2**53
        assert isinstance(found.settings, dict)
        assert isinstance(found.facts, dict)
    assert refused > 200


def test_network_weights(folder: Path) -> None:
    """Bytes of `model.safetensors` changed anywhere in its header."""
    source, refused = random.Random(31), 0
    path, saved = folder / saved_states.MODEL_FILE, saved_states.read(folder)
    whole = path.read_bytes()
    length = int.from_bytes(whole[:8], "little") + 8
    for _ in range(60):
        content = bytearray(whole)
        at = source.randrange(length)
        word = source.choice([b"9", b"F16", b"I64", b"[", b"null", b"-1", b'"'])
        content[at : at + len(word)] = word
        path.write_bytes(content)
        state = fresh()
        try:
            state.restore(saved)
        except UserError as error:
            assert f"--resume {folder}" in str(error) or path.name in str(error)
            refused += 1
            continue
        step(state)
    assert 30 < refused < 60


def test_a_state_as_it_was_saved_is_restored(folder: Path) -> None:
    state = fresh()
    state.restore(saved_states.read(folder))
    step(state)
    assert SimpleNamespace(**state.optimizer.state_dict()["state"][0]).step == 2
