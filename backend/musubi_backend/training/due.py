"""What is due after a step or an epoch: report, validate, save, sample, do what somebody asks for.

The loop knows none of these: one more is a class here and its name in `KINDS`. What takes time is given back as work, which the loop does
between two steps: with the weights that are meant for it, and not measured as a step.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from .. import device, durations, events, job
from ..counted import counted
from . import optimizer_report
from .trackers import step_values

if TYPE_CHECKING:
    from ..lora.network import MaxNormReport
    from .item_losses import ItemLosses
    from .keeping import Keeping
    from .progress import AverageLoss, StepBar
    from .run import Run
    from .sample_making import SampleMaking
    from .saved_states import Position
    from .validation import Validation

logger = logging.getLogger(__name__)

Work = Callable[[], object]
_STEPS_OF_ITEMS = 50  # fewer say little of an item, as its noise level differs each time


@dataclass(frozen=True)
class Done:
    """What a step gave. loss: mean of its batches; rates: learning rates it used; norms: of `--scale_weight_norms`."""

    loss: float
    rates: list[float]
    norms: MaxNormReport | None


class Trainer(Protocol):
    """What the things that may be due know of the loop."""

    run: Run
    position: Position
    average: AverageLoss
    items: ItemLosses
    bar: StepBar | None
    validation: Validation
    keeping: Keeping
    sample_making: SampleMaking

    def validate(self) -> float | None: ...


class Due:
    """One thing that may be due. Asked in all processes, and must answer in all of them alike."""

    def __init__(self, loop: Trainer) -> None:
        self.loop = loop
        self.run = loop.run

    def before_training(self) -> Work | None:
        """Asked before the first step of all, not where a training is continued."""
        return None

    def after_step(self, done: Done) -> Work | None:
        """Asked after every optimizer step."""
        return None

    def after_epoch(self, epoch: int) -> Work | None:
        """Asked after every epoch (1-based); also after one that the last step cut short."""
        return None


class Report(Due):
    """The step on the bar, in the event log and in the trackers."""

    def after_step(self, done: Done) -> None:
        run, loop = self.run, self.loop
        if not run.processes.is_main or loop.bar is None:
            return
        step, average, norms = loop.position.step, loop.average.value, done.norms
        shown = {"avr_loss": average}
        if norms is not None:
            shown = {"Keys Scaled": norms.keys_scaled, "Average key norm": norms.mean_norm, **shown}
        seconds = loop.bar.step(shown)
        job.emit(
            events.Step(step, run.total_steps, loop.position.epoch + 1, done.loss, average, done.rates[0], round(seconds, 4))
        )  # fmt: skip
        plus = run.network.options.loraplus_lr_ratio is not None
        values = step_values(done.loss, average, done.rates, run.choice.optimizer, run.settings.optimizer.optimizer_type, plus)
        if norms is not None:
            values["max_norm/keys_scaled"] = norms.keys_scaled
            values["max_norm/average_key_norm"] = norms.mean_norm
            values["max_norm/max_key_norm"] = norms.max_norm
        run.trackers.log(values, step)

    def after_epoch(self, epoch: int) -> None:
        self.run.trackers.log({"loss/epoch": self.loop.average.value}, epoch)


class OptimizerReport(Due):
    """What the optimizer says of itself, with `--log_optimizer_every`."""

    def __init__(self, loop: Trainer) -> None:
        super().__init__(loop)
        run, self._every = loop.run, loop.run.settings.logging.log_optimizer_every or 0
        if self._every and not optimizer_report.can_report(run.choice.optimizer):
            self._every = 0
            logger.warning("--log_optimizer_every has no effect: %s says nothing of itself", run.settings.optimizer.optimizer_type)

    def after_step(self, done: Done) -> None:
        step = self.loop.position.step
        if self._every and step % self._every == 0 and self.run.processes.is_main:
            optimizer = self.run.choice.optimizer
            self.run.trackers.log(optimizer_report.numbers(optimizer), step)
            job.emit(events.Optimizer(step, optimizer_report.lines(optimizer)))


class Save(Due):
    """`--save_every_n_steps` and `--save_every_n_epochs`, the state with `--save_state`."""

    def after_step(self, done: Done) -> Work | None:
        run, step = self.run, self.loop.position.step
        if not run.settings.saving.save_every_n_steps or step % run.settings.saving.save_every_n_steps:
            return None
        stem, rotate = run.checkpoints.step_name(step), lambda: run.checkpoints.rotate_steps(step)
        return lambda: self.loop.keeping.save_due(stem, self.loop.position.epoch, f"at step {step}", rotate)

    def after_epoch(self, epoch: int) -> Work | None:
        run, every = self.run, self.run.settings.saving.save_every_n_epochs
        if not every or epoch % every or epoch >= run.epochs:
            return None
        stem, rotate = run.checkpoints.epoch_name(epoch), lambda: run.checkpoints.rotate_epochs(epoch)
        return lambda: self.loop.keeping.save_due(stem, epoch, f"at epoch {epoch}", rotate)


class Validate(Due):
    """`--validate_every_n_steps` and `--validate_every_n_epochs`, and before the first and after the last step; once for each step."""

    def __init__(self, loop: Trainer) -> None:
        super().__init__(loop)
        self._last: int | None = None  # the last step whose weights were measured

    def before_training(self) -> Work | None:
        return self._measure if self.loop.validation.due(0) else None

    def after_step(self, done: Done) -> Work | None:
        return self._measure if self.loop.validation.due(self.loop.position.step) else None

    def after_epoch(self, epoch: int) -> Work | None:
        return self._measure if self.loop.validation.due(self.loop.position.step, epoch) else None

    def _measure(self) -> None:
        step = self.loop.position.step
        if self._last == step:
            return
        self._last, loss = step, self.loop.validate()
        if loss is not None and self.run.processes.is_main:
            logger.info("validation loss after step %d: %.4f, of %s", step, loss, counted(len(self.loop.validation.items), "item"))
            self.loop.validation.measured[step] = loss
            job.emit(events.Validation(step, loss))
            self.run.trackers.log({"loss/validation": loss}, step)


class Sample(Due):
    """`--sample_every_n_steps` and `--sample_every_n_epochs`."""

    def before_training(self) -> Work | None:
        return (lambda: self.loop.sample_making.make(None)) if self.run.samples.due(0) else None

    def after_step(self, done: Done) -> Work | None:
        return (lambda: self.loop.sample_making.make(None)) if self.run.samples.due(self.loop.position.step) else None

    def after_epoch(self, epoch: int) -> Work | None:
        return (lambda: self.loop.sample_making.make(epoch)) if self.run.samples.due(self.loop.position.step, epoch) else None


class Memory(Due):
    """What this process takes, every few seconds."""

    def __init__(self, loop: Trainer) -> None:
        super().__init__(loop)
        self._said = -durations.BETWEEN_MEMORY

    def after_step(self, done: Done) -> None:
        now = time.monotonic()
        if self.run.processes.is_main and job.folder() is not None and now - self._said >= durations.BETWEEN_MEMORY:
            self._said = now
            job.emit(events.Memory(self.loop.position.step, device.reserved_bytes(self.run.processes.device), device.resident_bytes()))


class Items(Due):
    """Which items are how hard, at the end of an epoch: of short ones, when enough steps have passed."""

    def __init__(self, loop: Trainer) -> None:
        super().__init__(loop)
        self._told = loop.position.step

    def after_epoch(self, epoch: int) -> None:
        step = self.loop.position.step
        if step > self._told and (step - self._told >= _STEPS_OF_ITEMS or step >= self.run.total_steps):
            self._told = step
            job.emit(self.loop.items.take(step))


class Requests(Due):
    """What came on stdin (`events.REQUESTS`). None of it changes what is trained."""

    def __init__(self, loop: Trainer) -> None:
        super().__init__(loop)
        self._last_epoch: int | None = None  # the one after which it is to stop, 1-based

    def after_step(self, done: Done) -> Work | None:
        names = self._asked()
        return (lambda: self._do(names)) if names else None

    def after_epoch(self, epoch: int) -> Work | None:
        return self._stop if epoch == self._last_epoch else None

    def _stop(self) -> None:
        """Once what else is due after the epoch is done: a stop would end it early. Heard before the next step, in all processes."""
        self._answer(events.STOP_AFTER_EPOCH, events.DONE)
        if self.loop.position.step < self.run.total_steps:
            job.request_stop()

    def _asked(self) -> list[str]:
        """Of whichever process read it."""
        return self.run.processes.union(job.take_requests(), events.REQUESTS)

    def _do(self, names: list[str]) -> None:
        """Until nothing is asked for and the training is not paused, or is to stop."""
        paused = False
        while True:
            for name in names:
                if name == events.SAVE:
                    self._save()
                elif name == events.SAMPLE:
                    self._sample()
                elif name == events.STOP_AFTER_EPOCH:
                    self._stop_after_epoch()
                elif (name == events.PAUSE) == paused:
                    self._answer(name, events.IGNORED, "it is paused already" if paused else "it is not paused")
                else:
                    paused = not paused
                    self._answer(name, events.DONE)
            if not paused or self.run.processes.any(job.stop_requested()):
                return
            time.sleep(durations.LOOK_WHILE_PAUSED)
            names = self._asked()

    def _save(self) -> None:
        """State and LoRA, which stay. When that fails, the training continues."""
        problem = self.loop.keeping.save_asked()
        self._answer(events.SAVE, events.IGNORED if problem else events.DONE, problem)

    def _sample(self) -> None:
        if not self.run.samples.any:
            self._answer(events.SAMPLE, events.IGNORED, "this training has no sample prompts")
            return
        problem = self.loop.sample_making.make(None)
        self._answer(events.SAMPLE, events.IGNORED if problem else events.DONE, problem)

    def _stop_after_epoch(self) -> None:
        if self._last_epoch is not None:
            self._answer(events.STOP_AFTER_EPOCH, events.IGNORED, f"it stops after epoch {self._last_epoch} already")
            return
        self._last_epoch = self.loop.position.epoch + 1

    def _answer(self, name: str, answer: str, text: str = "") -> None:
        if self.run.processes.is_main:
            job.answer(name, answer, self.loop.position.step, text)


KINDS: tuple[type[Due], ...] = (Memory, Report, OptimizerReport, Validate, Save, Sample, Items, Requests)
"""In this order."""
