"""What several processes make of their gradients and numbers, in numbers."""

from __future__ import annotations

from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from musubi_backend.errors import UserError
from musubi_backend.training import distributed, launched
from musubi_backend.training.distributed import ManyProcesses, lost_another
from torch import Tensor, nn


class WithPartner(ManyProcesses):
    """The group without its set-up: `all_reduce` is replaced in the tests."""

    def __init__(self, count: int) -> None:
        self.rank, self.count, self.device = 0, count, torch.device("cpu")
        self._patient: Any = "the group for waiting"
        self._parted, self._main = False, 0
        self._roll: Any = SimpleNamespace(from_elsewhere=lambda: "")


class Ended:
    """An exchange that is done."""

    def wait(self, timeout: timedelta | None = None) -> None:
        pass


@pytest.fixture
def partners(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """What the other processes send at the next exchange; summed as a process group would."""
    sent: list[Tensor] = []

    def all_reduce(tensor: Tensor, **more: Any) -> Ended:
        for one in sent:
            tensor += one
        return Ended()

    monkeypatch.setattr(torch.distributed, "all_reduce", all_reduce)
    return sent


def parameters() -> list[nn.Parameter]:
    return [nn.Parameter(torch.zeros(2, 2)), nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(1))]


def test_gradients_become_their_mean_and_unused_parameters_stay_without(partners: list[Tensor]) -> None:
    """The partner used the second parameter only, with gradients 6, 8, 10; nobody used the third."""
    first, second, third = every = parameters()
    first.grad = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    partners.append(torch.tensor([0.0, 1, 0, 0, 0, 0, 0, 6, 8, 10, 0]))
    WithPartner(2).average_gradients(iter(every))
    assert torch.equal(first.grad, torch.tensor([[0.5, 1.0], [1.5, 2.0]]))
    assert second.grad is not None and second.grad.tolist() == [3, 4, 5]
    assert third.grad is None


def test_means_are_over_all_processes_and_leave_what_was_given(partners: list[Tensor]) -> None:
    partners += [torch.tensor([2.0, 5.0]), torch.tensor([3.0, 1.0])]
    own = torch.tensor([1.0, 0.0])
    assert WithPartner(3).mean(own).tolist() == [2, 2] and own.tolist() == [1, 0]


def test_only_the_first_process_is_the_main_one_and_its_number_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    sent = {0: 40, 1: 41}

    def broadcast(tensor: Tensor, src: int, **more: Any) -> Ended:
        tensor.fill_(sent[src])
        return Ended()

    monkeypatch.setattr(torch.distributed, "broadcast", broadcast)
    second = WithPartner(2)
    assert second.is_main
    second.rank = 1
    assert not second.is_main and second.agreed(41) == 40


def test_work_that_fails_in_the_main_process_ends_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """The flags that the group exchanges: one to begin together, one for how the work ended."""
    of_partner: list[int] = []
    groups: list[Any] = []

    def all_reduce(tensor: Tensor, group: Any = None, **more: Any) -> Ended:
        groups.append(group)
        tensor += of_partner.pop(0)
        return Ended()

    monkeypatch.setattr(torch.distributed, "all_reduce", all_reduce)
    main, other = WithPartner(2), WithPartner(2)
    other.rank = 1
    done: list[str] = []
    of_partner += [0, 0, 0, 0]
    main.main_does(lambda: done.append("main"))
    other.main_does(lambda: done.append("other"))
    assert done == ["main"] and groups == [main._patient] * 4
    of_partner += [0, 1]
    with pytest.raises(SystemExit):
        other.main_does(lambda: done.append("other"))
    of_partner += [0, 0]
    with pytest.raises(OSError, match="full"):
        main.main_does(lambda: (_ for _ in ()).throw(OSError("full")))
    assert done == ["main"] and not of_partner, "the failure was reported, and only then raised"


def test_the_limit_for_exchanging_gradients_is_in_minutes(monkeypatch: pytest.MonkeyPatch) -> None:
    accelerate = pytest.importorskip("accelerate")
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr(
        accelerate,
        "PartialState",
        lambda **options: asked.append(options) or SimpleNamespace(process_index=0, num_processes=2, device=None),
    )
    monkeypatch.setattr(torch.distributed, "new_group", lambda **options: None)
    monkeypatch.setattr(distributed, "RollCall", lambda *rest: None)
    for minutes in (30, None):
        ManyProcesses(minutes)
    assert [one.get("timeout") for one in asked] == [timedelta(minutes=30), None]


@pytest.mark.parametrize(
    ("told", "fsdp", "said"),
    [
        ({}, False, ""),
        ({"ACCELERATE_USE_FSDP": "true"}, True, ""),
        ({"ACCELERATE_USE_DEEPSPEED": "false"}, False, ""),
        ({"ACCELERATE_USE_FSDP": "true"}, False, "give the trainer --fsdp"),
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, False, "told to use DeepSpeed, which this trainer does not"),
        ({"ACCELERATE_USE_MEGATRON_LM": "true", "ACCELERATE_USE_FSDP": "true"}, True, "told to use Megatron-LM"),
    ],
)
def test_what_accelerate_was_told_is_not_silently_left_out(told: dict[str, str], fsdp: bool, said: str) -> None:
    if not said:
        launched.check(told, fsdp=fsdp)
        return
    with pytest.raises(UserError, match=said):
        launched.check(told, fsdp=fsdp)


def test_from_where_a_process_has_parted_it_waits_for_nobody(partners: list[Tensor]) -> None:
    """Also the second one does not do what the main one does."""
    partners.append(torch.tensor(1))
    main, second = WithPartner(2), WithPartner(2)
    second.rank = 1
    done: list[int] = []
    for one in (main, second):
        assert one.any(False)
        one.part()
        assert not one.any(False) and one.any(True)
        one.main_does(lambda one=one: done.append(one.rank))  # type: ignore[misc]
    assert done == [0]
    assert lost_another(RuntimeError("[../gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:1"))
    assert not lost_another(RuntimeError("CUDA out of memory")) and not lost_another(OSError("Broken pipe"))
