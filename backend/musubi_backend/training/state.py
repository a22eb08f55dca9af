"""The state of a run: everything `--resume` needs to continue as if nothing had happened.

Folder layout is accelerate's, as musubi-tuner uses it (`model.safetensors` with the network only, `optimizer.bin`, `scheduler.bin`),
plus our `training_state.json`, which says where in the run it was taken (see `saved_states`). No random state is kept: every random
number is a function of the seed and the micro-step.
"""

from __future__ import annotations

import copy
import json
import shutil
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import atomic, job
from ..errors import UserError
from ..weights.safetensors_file import load, save_atomic
from . import saved_states
from .saved_states import FORMAT, MODEL_FILE, OPTIMIZER_FILE, POSITION_FILE, SCALER_FILE, SCHEDULER_FILE, Position, SavedState, contents
from .state_fit import OptimizerForm, check_kind, check_same_optimizer, check_schedule

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer

    from .schedules import Schedule


@dataclass(frozen=True)
class Contents:
    """What network, optimizer, schedule and loss scale hold: state dicts. course, scale: None where there is none."""

    weights: dict[str, Any]
    moments: Any
    course: Any
    scale: Any


@dataclass
class TrainingState:
    """A state to be written, or the live objects to restore one into.

    losses: of the last epoch's batches, for the average shown; history: of every step so far, validation: by the step after which it was
    measured, for the loss curve.
    """

    network: nn.Module
    optimizer: Optimizer
    schedule: Schedule
    scaler: Any
    position: Position
    losses: list[float]
    history: list[float]
    seed: int
    facts: dict[str, Any] = field(default_factory=dict)
    validation: Mapping[int, float] = field(default_factory=dict)

    @property
    def bytes(self) -> int:
        """How many the tensors of the state take on disk; what else is in it is small."""
        import torch

        moments = [value for values in self.optimizer.state.values() for value in values.values()]
        return sum(one.nbytes for one in [*self.network.state_dict().values(), *moments] if isinstance(one, torch.Tensor))

    def save(self, folder: Path) -> None:
        """Write a temporary folder and rename it, so that `folder` is always a whole state. OSError when the disk is full."""
        part, old = saved_states.beside(folder)
        try:
            part.mkdir(parents=True)
            with job.writing(folder.name, part):
                self._write(part)
            replace_folder(part, folder, old)
        finally:
            shutil.rmtree(part, ignore_errors=True)

    def contents(self) -> Contents:
        """Copies in system RAM of what the live objects hold, in the mode that they are in."""
        weights = {name: _copied(tensor) for name, tensor in self.network.state_dict().items()}
        scale = None if self.scaler is None else _copied(self.scaler.state_dict())
        return Contents(weights, _copied(self.optimizer.state_dict()), _copied(self.schedule.state_dict()), scale)

    def _write(self, part: Path) -> None:
        import torch

        weights = {name: tensor.detach().to("cpu") for name, tensor in self.network.state_dict().items()}
        save_atomic(weights, part / MODEL_FILE, {"format": "pt"})
        _save_pickle(self.optimizer.state_dict(), part / OPTIMIZER_FILE)
        _save_pickle(self.schedule.state_dict(), part / SCHEDULER_FILE)
        if self.scaler is not None:
            _save_pickle(self.scaler.state_dict(), part / SCALER_FILE)
        place = {"format": FORMAT, **asdict(self.position), "seed": self.seed, "torch": torch.__version__, "files": contents(part)}
        curves = {"losses": self.losses, "history": self.history, "validation": dict(self.validation)}
        atomic.write_text(part / POSITION_FILE, json.dumps({**place, **self.facts, **curves}))

    def restore(self, saved: SavedState, *, new_schedule: bool = False) -> None:
        """Load a checked state into the live objects. new_schedule: a schedule class of the user's own begins anew and is brought to the
        same step. UserError when the parts do not fit this run after all."""
        folder = saved.folder
        bases = [group.get("initial_lr", group["lr"]) for group in self.optimizer.param_groups] if saved.position else None
        moments, course, scale = (_load_pickle(folder / name) for name in (OPTIMIZER_FILE, SCHEDULER_FILE, SCALER_FILE))
        try:
            if not saved.settings or not isinstance(moments, dict):
                check_same_optimizer(self.optimizer, moments)
            self._take(Contents(load(folder / MODEL_FILE), moments, course, scale), bases, saved.step, new_schedule=new_schedule)
        except (RuntimeError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            raise UserError(
                f"--resume {folder} does not fit this training: {error}. Use the settings it was saved with, or start anew with "
                f"--network_weights {folder / MODEL_FILE}"
            ) from error

    def take(self, contents: Contents) -> None:
        """Load what the objects of this very run held into ones that were made anew with the same settings."""
        self._take(contents, [group.get("initial_lr", group["lr"]) for group in self.optimizer.param_groups], 0, new_schedule=False)

    def _take(self, contents: Contents, bases: list[float] | None, step: int, *, new_schedule: bool) -> None:
        form = OptimizerForm(self.optimizer)
        self.network.load_state_dict(contents.weights)
        form.load(contents.moments)
        form.check(new_schedule=new_schedule)
        course, scale = contents.course, contents.scale
        if course is not None:
            check_schedule(course, self.schedule.state_dict(), len(self.optimizer.param_groups))
            _restore_schedule(self.schedule, self.optimizer, course, bases, step if new_schedule else None)
        if self.scaler is not None and scale is not None:
            for key, value in self.scaler.state_dict().items():
                check_kind(scale[key], value, f"{key} of its loss scale")
            self.scaler.load_state_dict(scale)


def _copied(value: Any) -> Any:
    """The same with tensors of its own in system RAM."""
    import torch

    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: _copied(one) for key, one in value.items()}
    return type(value)(map(_copied, value)) if type(value) in (list, tuple) else copy.deepcopy(value)


def replace_folder(new: Path, target: Path, old: Path) -> None:
    """Put `new` in the place of `target`. Killed in between, `old` holds the former content (see `saved_states.clean_leftovers`)."""
    if target.exists():
        target.replace(old)
    try:
        new.replace(target)
    except OSError:
        if old.exists():
            old.replace(target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _restore_schedule(
    schedule: Schedule, optimizer: Optimizer, values: dict[str, Any], bases: list[float] | None, anew: int | None
) -> None:
    """Bring a schedule to a saved point.

    Of a schedule of step numbers only the counters are taken, and the rate follows from the schedule of this run at that step: one that
    is longer does not begin with the last rate of the shorter. bases: rates that its shares are of; None continues with those of the state.
    anew: a schedule of another class does so many steps from its start; None continues with the state's.
    """
    from torch.optim.lr_scheduler import LambdaLR

    live: Any = schedule
    if type(schedule) is LambdaLR:
        counters: dict[str, Any] = {key: values[key] for key in ("last_epoch", "_step_count", "_last_lr", "base_lrs") if key in values}
        vars(live).update(counters)
        if bases is None:
            return
        live.base_lrs, live._last_lr = bases, [base * share(live.last_epoch) for base, share in zip(bases, live.lr_lambdas, strict=True)]
        for group, rate, base in zip(optimizer.param_groups, live._last_lr, bases, strict=True):
            group["lr"], group["initial_lr"] = rate, base
    elif anew is not None and bases is not None:
        for group, base in zip(optimizer.param_groups, bases, strict=True):
            group["lr"] = group["initial_lr"] = base
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PyTorch wants optimizer steps in between
            for _ in range(anew):
                schedule.step()
    else:
        schedule.load_state_dict(values)


def _save_pickle(values: dict[str, Any], path: Path) -> None:
    import torch

    with atomic.replacing(path) as part, part.open("wb") as file:
        try:
            torch.save(values, file)
        except RuntimeError as error:  # torch reports a failed write as an unexpected position in its zip file
            raise error.__context__ if isinstance(error.__context__, OSError) else OSError(f"{path.name}: {error}") from error


def _load_pickle(path: Path) -> Any:
    """The contents of a file of tensors and plain values; None where there is none. UserError when it cannot be read."""
    import torch

    if not path.exists():
        return None
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can make its reader throw anything
        raise UserError(
            f"--resume {path.parent} is damaged: {path.name} cannot be read ({str(error)[:200]}); use an older state"
        ) from error
