"""LoRA files and resumable states of a run: their names, when they are written, which old ones go.

Names and removal rules are musubi-tuner's: `{name}-{epoch:06d}`, `{name}-step{step:08d}`, `{name}`, with `.safetensors` for the
LoRA and `-state` for the folder to resume from. Everything is written to a temporary file and renamed as a whole.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from .. import events, job
from ..errors import UserError
from ..lora.expert_networks import parts_of
from ..place import in_words
from ..weights.safetensors_file import save_atomic
from ..weights.streamed_file import with_hashes
from . import metadata, saved_states
from .saved_states import EXPERT_NAMES, FILE_SUFFIX, STATE_SUFFIX, expert_suffix
from .settings import TrainingSettings

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from ..architectures.card import Card
    from ..lora.run_network import Network
    from .state import TrainingState

logger = logging.getLogger(__name__)


LORA, STATE = "the LoRA", "the state"
"""What people call the two kinds of files."""


@dataclass(frozen=True)
class Rotation:
    """How many checkpoints of one kind stay: `every` and `last` of `--save_every_n_X` and `--save_last_n_X(_state)`."""

    every: int
    last: int | None

    def step_to_remove(self, step: int) -> int | None:
        """The step whose file goes when `step` is saved: with every 10 and last 30, step 50 removes step 10."""
        if self.last is None:
            return None
        old = step - self.last - 1
        old -= old % self.every
        return old if old > 0 else None

    def epoch_to_remove(self, epoch: int) -> int | None:
        """The epoch whose file goes when `epoch` is saved: `last` counts files, so with every 2 and last 3, epoch 8 removes epoch 2."""
        old = epoch - self.every * self.last if self.last is not None else 0
        return old if old > 0 else None


class Checkpoints:
    """Writes the files of one run into its output folder."""

    def __init__(self, settings: TrainingSettings, card: Card, run_metadata: dict[str, str]) -> None:
        self.settings = settings
        self.saving = settings.saving
        self.card = card
        self.run_metadata = run_metadata
        self.folder = Path(self.saving.output_dir)
        self.name = self.saving.output_name
        self.dtype = save_dtype(self.saving.save_precision)

    def epoch_name(self, epoch: int) -> str:
        return f"{self.name}-{epoch:06d}"

    def step_name(self, step: int) -> str:
        return f"{self.name}-step{step:08d}"

    def state_folder(self, stem: str) -> Path:
        return self.folder / f"{stem}{STATE_SUFFIX}"

    def save_lora(
        self, stem: str, network: Network, step: int, epoch: int, *, asked: bool = False, folder: Path | None = None
    ) -> list[Path]:
        """Write `{stem}.safetensors` in the save dtype, or `{stem}-{expert}.safetensors` for each expert with a LoRA of its own. epoch:
        1-based, but 0-based for files named by step, as musubi-tuner counts. asked: somebody wants this one, so it stays. folder: another
        one than the run's."""
        paths = []
        for expert, part in parts_of(network).items():
            path = (folder or self.folder) / f"{stem}{expert_suffix(expert)}{FILE_SUFFIX}"
            print(f"\nsaving checkpoint: {path}", flush=True)
            if expert:
                logger.info("%s is the LoRA of the %s noise expert", path.name, expert)
            tensors = _on_cpu(part.state_dict(), self.dtype)
            values = metadata.file_metadata(self.run_metadata, self.settings, self.card, step, epoch, expert)
            if not asked and self._is_of_stop(stem, step):
                values[saved_states.OF_STOP] = "True"
            with job.saving(path, LORA, sum(tensor.nbytes for tensor in tensors.values())), explained(path):
                path.parent.mkdir(parents=True, exist_ok=True)  # somebody may have removed it since the training began
                save_atomic(tensors, path, with_hashes(tensors, values))
            job.emit(events.Saved(str(path), LORA, step, epoch, expert))
            paths.append(path)
        return paths

    def save_state(self, stem: str, state: TrainingState, reason: str, *, asked: bool = False, into: Path | None = None) -> Path:
        """Write the folder `{stem}-state`; then those of earlier stops of this training go. reason: what the log says, e.g. "at step 3";
        asked, into: as `asked`, `folder` of `save_lora`. Returns the folder."""
        folder, step = (into or self.folder) / self.state_folder(stem).name, state.position.step
        logger.info("saving state %s", reason)
        of_stop = self._is_of_stop(stem, step)
        if not asked and (of_stop or (stem == self.step_name(step) and not self.saving.save_state)):
            state = replace(state, facts={**state.facts, "of_stop": {"lora": of_stop}})
        with explained(folder):
            state.save(folder)
        job.emit(events.Saved(str(folder), STATE, step))
        self._remove_earlier_stops(state)
        return folder

    def _is_of_stop(self, stem: str, step: int) -> bool:
        """True for files named by a step at which none are saved by itself: those of a stop."""
        return stem == self.step_name(step) and not (self.saving.save_every_n_steps and step % self.saving.save_every_n_steps == 0)

    def _remove_earlier_stops(self, state: TrainingState) -> None:
        """A stop's state is there to continue from; once a further one of the same training is whole, it and its LoRA have done that."""
        for folder in saved_states.of_run(self.folder, self.name):
            try:
                earlier = saved_states.read(folder)
            except UserError:
                continue  # damaged: nothing is known of it, so it stays
            of_stop = earlier.facts.get("of_stop")
            if of_stop and earlier.facts.get("run") == state.facts.get("run") and earlier.step < state.position.step:
                if of_stop["lora"]:
                    self._remove_file(self.step_name(earlier.step))
                self._remove_state(self.step_name(earlier.step))

    def rotate_steps(self, step: int) -> None:
        """Remove what `--save_last_n_steps` and `--save_last_n_steps_state` no longer keep, after `step` was saved."""
        saving, every = self.saving, self.saving.save_every_n_steps or 1
        self._remove_file(_named(self.step_name, Rotation(every, saving.save_last_n_steps).step_to_remove(step)))
        if saving.save_state:
            last = saving.save_last_n_steps_state or saving.save_last_n_steps
            self._remove_state(_named(self.step_name, Rotation(every, last).step_to_remove(step)))

    def rotate_epochs(self, epoch: int) -> None:
        """Remove what `--save_last_n_epochs` and `--save_last_n_epochs_state` no longer keep, after `epoch` was saved."""
        saving, every = self.saving, self.saving.save_every_n_epochs or 1
        self._remove_file(_named(self.epoch_name, Rotation(every, saving.save_last_n_epochs).epoch_to_remove(epoch)))
        if saving.save_state:
            last = saving.save_last_n_epochs_state or saving.save_last_n_epochs
            self._remove_state(_named(self.epoch_name, Rotation(every, last).epoch_to_remove(epoch)))

    def _remove_file(self, stem: str | None) -> None:
        for expert in EXPERT_NAMES:
            if stem is not None and (path := self.folder / f"{stem}{expert_suffix(expert)}{FILE_SUFFIX}").exists():
                print(f"removing old checkpoint: {path}", flush=True)
                with _said_of(path):
                    path.unlink()

    def _remove_state(self, stem: str | None) -> None:
        if stem is not None and (folder := self.state_folder(stem)).exists():
            logger.info("removing old state: %s", folder)
            doomed, _ = saved_states.beside(folder)  # killed meanwhile, no half state may stand there
            with _said_of(folder):
                folder.rename(doomed)
                shutil.rmtree(doomed)


@contextlib.contextmanager
def _said_of(path: Path) -> Iterator[None]:
    """An old checkpoint that cannot be removed (a program has it open, the disk is read-only) is said, and in nobody's way."""
    try:
        yield
    except OSError as error:
        logger.warning("the old checkpoint could not be removed: %s", in_words(error) if error.filename else f"{path}: {error}")


def _named(name: Callable[[int], str], number: int | None) -> str | None:
    return None if number is None else name(number)


def save_dtype(precision: str | None) -> torch.dtype:
    """dtype of LoRA files for `--save_precision`; float32, in which LoRAs are trained, by default."""
    import torch

    return {None: torch.float32, "float": torch.float32, "fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[precision]


def _on_cpu(tensors: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    return {name: tensor.detach().to("cpu", dtype) for name, tensor in tensors.items()}


@contextlib.contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn a failed write into words that say what is left."""
    try:
        yield
    except OSError as error:
        full = error.errno == errno.ENOSPC or "No space left" in str(error)
        what = "the disk is full" if full else str(error.strerror or error)
        raise UserError(f"{path} could not be written: {what}. Earlier checkpoints are untouched") from error
