"""Does what was loaded from a state's files fit the live optimizer and schedule? Asked before the first step: the kernels of optimizers
do not look at shapes, and one of the wrong shape makes them write outside of their memory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from numbers import Number
from typing import TYPE_CHECKING, Any

import torch

from ..counted import counted

if TYPE_CHECKING:
    from torch.optim import Optimizer

# settings that say how an optimizer computes, not which one it is, and that versions of PyTorch add; or how far a run is
_HOW = {"fused", "foreach", "capturable", "differentiable", "maximize", "decoupled_weight_decay"}
_FREE = {*_HOW, "initial_lr", "train_mode"}
_MOST_STEPS = 2**40
_LARGEST = 2**53
_STRANGE = ("no plain tensor",)


class OptimizerForm:
    """What each parameter's state and each group's settings are like, by kind, dtype and shape, once a step was done."""

    def __init__(self, optimizer: Optimizer) -> None:
        """Does one step, so that every optimizer, of whatever library, makes its state as it wants it. The parameters and the state are
        to be loaded afterwards."""
        self._optimizer = optimizer
        train: Callable[[], object] | None = getattr(optimizer, "train", None)
        if train is not None:
            train()
        for parameter in _parameters(optimizer):
            parameter.grad = torch.full_like(parameter, 0.01)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        self._states = {
            parameter: {key: _form(value) for key, value in optimizer.state[parameter].items()} for parameter in _parameters(optimizer)
        }
        self._groups = [dict(group) for group in optimizer.param_groups]

    def load(self, saved: dict[str, Any]) -> None:
        """Load a state. PyTorch makes its numbers as exact as their weights; those that the optimizer keeps otherwise stay as saved."""
        optimizer = self._optimizer
        optimizer.load_state_dict(saved)
        indices = [index for group in saved["param_groups"] for index in group["params"]]
        for parameter, index in zip(_parameters(optimizer), indices, strict=True):
            for key, value in saved["state"].get(index, {}).items():
                form, held = self._states[parameter].get(key), optimizer.state[parameter].get(key)
                if form and isinstance(value, torch.Tensor) and isinstance(held, torch.Tensor) and held.dtype != value.dtype == form[0]:
                    optimizer.state[parameter][key] = value.detach().clone().to(held.device)

    def check(self, *, new_schedule: bool = False) -> None:
        """ValueError where what the optimizer holds now is not like that. How it computes stays as this run has it; with a new schedule
        also what schedules keep in the groups."""
        optimizer = self._optimizer
        for parameter, state in optimizer.state.items():
            if parameter not in self._states:
                raise ValueError("its optimizer has a state for a weight that is not trained here")
            for key, form in self._states[parameter].items() if state else ():
                if key not in state:
                    raise ValueError(f"its optimizer state lacks {key}")
                if _form(state[key]) != form:
                    raise ValueError(f"{key} of its optimizer is {_words(_form(state[key]))}, and {_words(form)} is needed")
            for key, value in state.items():
                _check_value(key, value, known=key in self._states[parameter])
        for group, ours in zip(optimizer.param_groups, self._groups, strict=True):
            if new_schedule:
                group.update({key: ours[key] for key in ours.keys() - optimizer.defaults.keys() - {"params"}})
            missing = sorted(ours.keys() - group.keys() - _FREE - {"params"})
            if missing:
                raise ValueError(f"its optimizer says nothing of {', '.join(missing)}")
            group.update({key: ours[key] for key in _HOW & ours.keys()})
            for key in group.keys() & ours.keys() - _FREE - {"params"}:
                check_kind(group[key], ours[key], f"{key} of its optimizer")
                if isinstance(ours[key], bool) and key in optimizer.defaults and group[key] != ours[key]:
                    raise ValueError(f"{key} of its optimizer was {group[key]} and is {ours[key]} now")


def _check_value(key: str, value: Any, known: bool) -> None:
    """known: its form, with how it lies in memory, was compared."""
    if isinstance(value, torch.Tensor) and (_form(value) == _STRANGE if known else not _is_plain(value)):
        raise ValueError(f"{key} of its optimizer is no plain tensor")
    if isinstance(value, torch.Tensor) and value.is_floating_point() and not value.isfinite().all():
        raise ValueError(f"{key} of its optimizer holds numbers that are not finite")
    if key == "step" and not 0 <= float(value) <= _MOST_STEPS:
        raise ValueError(f"its optimizer has done {float(value):g} steps")


def check_same_optimizer(optimizer: Optimizer, values: Any) -> None:
    """ValueError for the state of another optimizer: its numbers would be taken for something they are not."""
    groups = values.get("param_groups") if isinstance(values, dict) else None
    if not isinstance(groups, list) or not groups or not all(isinstance(group, dict) for group in groups):
        raise ValueError("it holds no optimizer state")
    ours, theirs = (set(first) - _FREE for first in (optimizer.param_groups[0], groups[0]))
    if ours != theirs:
        raise ValueError(f"it was saved by another optimizer, whose settings are {', '.join(sorted(map(str, theirs)))}")


def check_schedule(values: Any, live: Mapping[str, Any], groups: int) -> None:
    """ValueError where a loaded schedule is not like the state `live` of the schedule it goes into. groups: how many rates there are."""
    if not isinstance(values, dict):
        raise ValueError("it holds no learning-rate schedule")
    for key in values.keys() & live.keys():
        check_kind(values[key], live[key], f"{key} of its schedule")
    for key in ("base_lrs", "_last_lr"):
        if len(values.get(key, [0.0] * groups)) != groups:
            raise ValueError(f"its schedule has {counted(len(values[key]), 'learning rate')}, and this training has {groups}")
    for key in ("last_epoch", "_step_count"):
        if not 0 <= values.get(key, 0) <= _MOST_STEPS:
            raise ValueError(f"{key} of its schedule is {values[key]}")


def check_kind(value: Any, like: Any, what: str) -> None:
    """ValueError unless `value` can stand where `like` does: a number for a number, as many numbers for several, text for text."""
    if like is None or isinstance(like, bool) or value is None:
        fits = like is None or isinstance(value, bool)
    elif _is_number(like):
        fits = _is_number(value)
    elif isinstance(like, (list, tuple)):
        fits = isinstance(value, (list, tuple)) and len(value) == len(like)
        if fits and all(map(_is_number, like)):
            fits = all(map(_is_number, value))
    else:
        fits = isinstance(value, type(like))
    if not fits:
        raise ValueError(f"{what} is {str(value)[:80]}, and something like {str(like)[:80]} is needed")


def _parameters(optimizer: Optimizer) -> list[torch.Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _form(value: Any) -> tuple[Any, ...]:
    """Of a tensor that does not lie in one piece, also its strides: one that an optimizer makes so may be loaded so."""
    if isinstance(value, torch.Tensor):
        form = (value.dtype, tuple(value.shape))
        if _is_plain(value):
            return form
        own = value.layout == torch.strided and not value.is_quantized and value.untyped_storage().nbytes() >= value.nbytes
        return (*form, value.stride()) if own else _STRANGE
    return ("a number",) if isinstance(value, Number) else (type(value).__name__,)


def _words(form: Sequence[Any]) -> str:
    if len(form) == 3:
        return f"no plain tensor, its strides are {list(form[2])}"
    return str(form[0]) if len(form) == 1 else f"{str(form[0]).removeprefix('torch.')} {list(form[1])}"


def _is_plain(tensor: torch.Tensor) -> bool:
    """Its values lie one behind the other, which kernels rely on."""
    return tensor.layout == torch.strided and not tensor.is_quantized and tensor.is_contiguous()


def _is_number(value: Any) -> bool:
    """One that kernels can take, also as a tensor of one number."""
    if isinstance(value, torch.Tensor):
        return value.numel() == 1 and not value.is_complex() and _is_plain(value) and abs(value.item()) <= _LARGEST
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= _LARGEST
