"""The training loop: batches in order, one loss per micro-step, and at the end of an accumulation window one wait for them and one step.

It can stop anywhere, also inside a forward or backward pass (of several processes, between two micro-steps, as all must leave together):
gradients of an unfinished window are thrown away and the window is done again on resume, so what continues is exactly what would
have gone on.
"""

from __future__ import annotations

import contextlib
import logging
import math
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from .. import events, exhausted, job
from ..counted import counted
from ..device import for_model
from ..errors import UserError
from ..layers import offloaded
from ..layers.experts import boundary_of
from ..layers.random_states import RandomStates
from ..lora.expert_networks import parts_of
from ..place import in_words
from . import distributed, due
from .charts import loss_curve
from .due import Done, Work
from .item_losses import ItemLosses
from .keeping import Keeping
from .leaving import Leaving
from .losses import flow_matching_loss, loss_weight
from .progress import AverageLoss, StepBar
from .randomness import StepRandomness
from .run import Run
from .sample_making import SampleMaking
from .saved_states import Position
from .state import TrainingState
from .stepping_down import SteppingDown
from .validation import Validation
from .window import Drawn, batches_at_once, together

if TYPE_CHECKING:
    from torch import Tensor

    from ..architectures.protocol import Architecture
    from ..dataset.batches import BatchDescription
    from .built import Built
    from .settings import TrainingSettings

logger = logging.getLogger(__name__)

_TRAINING = "training"  # as the nodes call the phase of steps


class _Trained(NamedTuple):
    """A batch of an unfinished window. place: in the epoch and process; names: of its items; loss: on the device still."""

    place: int
    names: list[str]
    loss: Tensor


class Loop:
    """Trains a `Run` from its position to its last step."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.device = run.processes.device
        self.position = run.position
        self.average = AverageLoss(run.losses)
        self.items = ItemLosses()
        self.history = run.history
        self.sampling = run.settings.timesteps
        self.boundary = boundary_of(run.transformer)
        self.randomness = StepRandomness(run.seed, run.processes.rank, self.device)
        self.scaler = self._new_scaler()
        self.bar: StepBar | None = None
        self.keeping = Keeping(self)
        self.down = SteppingDown(self)
        self.leaving = Leaving(self.keeping, self.down)
        self.sample_making = SampleMaking(self)
        self._window: list[_Trained] = []
        self.validation = Validation(run)
        self.due = [kind(self) for kind in due.KINDS]

    @property
    def parameters(self) -> list[Tensor]:
        """What the optimizer trains."""
        return [parameter for group in self.run.choice.optimizer.param_groups for parameter in group["params"]]

    @property
    def at_once(self) -> int:
        """How many batches go through the model together."""
        return batches_at_once(self.run.settings, self.run.transformer)

    def go_to(self, position: Position, losses: list[float], history: list[float]) -> None:
        """Begin at a saved position instead of the start."""
        self.position = position
        self.keeping.begin()
        self.average, self.history = AverageLoss(losses), list(history)

    def forget(self) -> None:
        """Let go of everything on the device, to `hold` it anew."""
        run = self.run
        del run.transformer, run.network, run.choice, run.schedule
        self.scaler = None
        self._window.clear()
        offloaded.unpin()

    def hold(self, built: Built, settings: TrainingSettings, architecture: Architecture) -> None:
        """Go on with what was built anew; its contents are to be restored."""
        run = self.run
        run.transformer, run.network, run.choice, run.schedule = built.transformer, built.network, built.choice, built.schedule
        run.settings, run.architecture = settings, architecture
        run.samples.architecture = architecture
        self.scaler = self._new_scaler()

    def _new_scaler(self) -> torch.amp.GradScaler | None:
        """LoRA gradients through fp16 arithmetic underflow without scaling."""
        return torch.amp.GradScaler(self.device.type) if self.run.dtype == torch.float16 else None

    def start(self) -> None:
        """Train to the end, then save the LoRA (and the state). Raises StopRequested once everything worth keeping is saved; so it is
        when a step fails."""
        run = self.run
        if self.position.step == 0:
            for work in [work for one in self.due if (work := one.before_training()) is not None]:
                work()
        self.bar = StepBar(run.total_steps, self.position.step, shown=run.processes.is_main)
        run.choice.train()
        self.down.remember()
        # trackers last of all: waiting for one must not cost what is to be saved
        with self.leaving.outliving_others(), contextlib.closing(run.trackers):
            with contextlib.closing(self.bar), self.leaving.saving_first():
                while self.position.step < run.total_steps:
                    self._say(f"\nepoch {self.position.epoch + 1}/{run.epochs}")
                    job.phase(f"epoch {self.position.epoch + 1} of {run.epochs}")
                    if not self.down.surviving(self._epoch):
                        break
            self._finish()
            self.sample_making.make_late()

    def _epoch(self) -> bool:
        """The rest of the current epoch. False when the last step fell before its end."""
        run, position, done = self.run, self.position, self.position.batch
        batches = self._own_batches(position.epoch, done)
        accumulated, at_once = run.settings.length.gradient_accumulation_steps, self.at_once
        with self.leaving.together():
            upcoming = [self._load(batch) for batch in batches[:at_once]]
        for start in range(0, len(batches), at_once):
            self.leaving.if_asked()
            names = ", ".join(str(name) for batch in batches[start : start + at_once] for name in batch.names)
            with self.leaving.together(), exhausted.during(f"training {names}"):
                losses = self.forward_and_backward(upcoming, position.micro_step + len(self._window))
                upcoming = [self._load(batch) for batch in batches[start + at_once : start + 2 * at_once]]  # while the device computes
            for index, loss in enumerate(losses, start):
                place = done // run.processes.count + index
                self._window.append(_Trained(place, [str(name) for name in batches[index].names], loss))
            if len(self._window) == accumulated or index == len(batches) - 1:
                self._update(self._checked(), done + (index + 1) * run.processes.count)
                if position.step >= run.total_steps:
                    self._end_of_epoch(whole=index == len(batches) - 1)
                    return False
        self._end_of_epoch(whole=True)
        return True

    def _own_batches(self, epoch: int, done: int = 0) -> list[BatchDescription]:
        """Of an epoch, of which all processes together have done so many."""
        run = self.run
        return distributed.share(run.dataset.batches(run.seed, epoch + 1), run.processes.rank, run.processes.count, done)

    def _load(self, description: BatchDescription) -> dict[str, Any]:
        """The cached tensors of one batch where they are used, see `for_model`."""
        batch: dict[str, Any] = {}
        for name, value in self.run.dataset.collate(description).items():
            if isinstance(value, torch.Tensor):
                batch[name] = for_model(value, self.device)
            elif value and isinstance(value[0], torch.Tensor):
                batch[name] = [for_model(tensor, self.device) for tensor in value]
            else:
                batch[name] = value
        return batch

    def forward_and_backward(self, batches: list[dict[str, Any]], micro_step: int) -> list[Tensor]:
        """Of batches whose gradients add up, the first one's at `micro_step`. Returns their losses, still on the device."""
        if len(batches) == 1:
            return [self._backward(batches[0], micro_step)]
        window = [(self._drawn(batch, number), RandomStates.now(self.device)) for number, batch in enumerate(batches, micro_step)]
        return together(self.run, window, lambda prediction, drawn: self._go_back(self._loss(prediction, drawn)))

    def _backward(self, batch: dict[str, Any], micro_step: int) -> Tensor:
        """Forward and backward of one batch; gradients add up. Returns the loss, still on the device."""
        run, drawn = self.run, self._drawn(batch, micro_step)
        with run.network.working_in(run.dtype):
            return self._go_back(self._loss_at(*drawn))

    def _drawn(self, batch: dict[str, Any], micro_step: int) -> Drawn:
        self.randomness.start(micro_step)
        latents = self.run.architecture.scale_latents(batch["latents"].float())
        noise = self.randomness.noise(latents.shape)
        levels = self.randomness.levels(self.sampling, latents.shape, batch.get("timesteps"), self.boundary, self.position.step)
        return Drawn(batch, latents, noise, *levels)

    def _go_back(self, loss: Tensor) -> Tensor:
        """Back from the loss of a batch of a window. Returns it."""
        scaled = loss / self.run.settings.length.gradient_accumulation_steps
        if scaled.requires_grad:  # not where module_dropout left every LoRA module out
            (scaled if self.scaler is None else self.scaler.scale(scaled)).backward()
        return loss.detach()

    def _loss_at(self, batch: dict[str, Any], latents: Tensor, noise: Tensor, t: Tensor, timesteps: Tensor) -> Tensor:
        """The loss of one batch, whose latents are scaled, at these noise levels."""
        drawn = Drawn(batch, latents, noise, t, timesteps)
        return self._loss(self.run.architecture.predict(self.run.transformer, drawn.noisy, timesteps, batch), drawn)

    def _loss(self, prediction: Tensor, drawn: Drawn) -> Tensor:
        weight = loss_weight(self.run.settings.timesteps.weighting_scheme, drawn.timesteps, self.run.dtype, drawn.latents.ndim)
        return flow_matching_loss(prediction, drawn.latents, drawn.noise, weight)

    def _has_gradients(self) -> bool:
        return any(parameter.grad is not None for parameter in self.parameters)

    def _checked(self) -> list[float]:
        """The losses of a window as numbers, once its gradients are averaged and clipped; the only wait for the device.

        UserError naming the items when a loss or the gradients are not finite: they have changed nothing yet. Several processes find that
        out together, as their gradients and the means of their losses are those of all; the one whose loss it is names its items.
        """
        run, window = self.run, self._window
        run.processes.average_gradients(self.parameters)
        if self.scaler is not None and self._has_gradients():
            self.scaler.unscale_(run.choice.optimizer)
        total_norm = torch.nn.utils.clip_grad_norm_(self.parameters, run.settings.optimizer.max_grad_norm or math.inf)
        *losses, norm = torch.stack([*(one.loss for one in window), total_norm.to(window[0].loss)]).tolist()
        suspects = [one for one, loss in zip(window, losses, strict=True) if not math.isfinite(loss)]
        steep = self.scaler is None and not math.isfinite(norm)  # the scaler skips a step that overflowed and tries a smaller scale
        means = losses if run.processes.count == 1 else run.processes.mean(torch.tensor(losses, device=self.device)).tolist()
        elsewhere = not suspects and not all(map(math.isfinite, means))
        if suspects or steep or elsewhere:
            what = "loss" if suspects or elsewhere else "gradient"
            names = "what another process names" if elsewhere else ", ".join(name for one in suspects or window for name in one.names)
            if not self.position.step:
                raise UserError(
                    f"the {what} is not finite at the very first step, training {names}. "
                    "The weights of --dit are damaged, or too large for the dtype: fetch the file again, or use --mixed_precision bf16"
                )
            raise UserError(
                f"the {what} is not finite at step {self.position.step + 1}, training {names}. "
                "Nothing was saved from this step. Look at that item and cache it again, lower --learning_rate, or use "
                "--mixed_precision bf16; continue with --resume on the last state"
            )
        for one, loss in zip(window, losses, strict=True):
            self.items.add(one.names, loss)
        return means

    def _update(self, losses: list[float], done: int) -> None:
        """One optimizer step; then what is due after it. losses: of its window; done: batches of this epoch that all processes have done.

        Where nothing has a gradient (module_dropout left every LoRA module out), the step counts and changes nothing.
        """
        run, position, largest_norm = self.run, self.position, self.run.settings.network.scale_weight_norms
        self.down.updating = True
        if self._has_gradients():
            if self.scaler is None:
                run.choice.optimizer.step()
            else:
                self.scaler.step(run.choice.optimizer)
                self.scaler.update()
        rates = run.schedule.get_last_lr()
        run.schedule.step()
        run.choice.optimizer.zero_grad(set_to_none=True)
        norms = run.network.apply_max_norm(largest_norm) if largest_norm else None
        for one, value in zip(self._window, losses, strict=True):
            self.average.add(one.place, value)
        loss = sum(losses) / len(losses)
        position.step += 1
        position.batch = done
        position.micro_step += len(losses)
        self._window.clear()
        self.history.append(loss)
        self.down.updating = False
        self.down.remember()
        self.keeping.after_step()
        given = Done(loss, rates, norms)
        works = [work for one in self.due if (work := one.after_step(given)) is not None]
        if works:
            self._do(works)

    def _end_of_epoch(self, whole: bool) -> None:
        """What is due after an epoch, which may have been cut short by the last step."""
        epoch = self.position.epoch + 1
        if whole:
            self.position.epoch, self.position.batch = epoch, 0
        self._do([work for one in self.due if (work := one.after_epoch(epoch)) is not None])

    def _do(self, works: list[Work]) -> None:
        """What is due, with the weights that are meant for saving and sampling, and not measured as a step."""
        if self.bar is not None:
            self.bar.pause()
        self.run.choice.eval()
        for work in works:
            work()
        self.run.choice.train()
        if self.bar is not None:
            self.bar.resume()
        job.phase(_TRAINING)

    def _finish(self) -> None:
        run = self.run
        run.choice.eval()
        self.keeping.save_last()
        job.keep("")
        if run.processes.is_main:
            self._warn_of_nothing_learned()
        if run.processes.is_main and self.history:
            path = run.checkpoints.folder / f"{run.checkpoints.name}.loss.png"
            title = f"{run.checkpoints.name}: loss over {counted(len(self.history), 'step')}, last average {self.average.value:.4g}"
            try:
                loss_curve(path, self.history, title, self.validation.measured)
            except Exception as error:  # all that matters is saved; Pillow may lack its fonts
                logger.warning("no image of the losses: %s", in_words(error) if isinstance(error, OSError) and error.errno else error)
            else:
                job.emit(events.Output("loss", str(path)))
        logger.info("model saved.")
        job.phase("saved")

    def _warn_of_nothing_learned(self) -> None:
        for expert, part in parts_of(self.run.network).items():
            if part.changes_nothing():
                logger.warning(
                    "NOTHING WAS LEARNED: the %s is all zeros and changes nothing. Look at the learning rate, the schedule, the "
                    "dropouts and the noise levels that were trained",
                    f"LoRA of the {expert} noise expert" if expert else "LoRA",
                )

    def validate(self) -> float | None:
        """The loss of what is held out, with the weights as they are; None where it was ended early."""
        return self.down.surviving(lambda: self.validation.measure(self._load, self._loss_at, self.down.helps))

    def state(self) -> TrainingState:
        """The run at its last finished optimizer step."""
        run = self.run
        return TrainingState(
            run.network, run.choice.optimizer, run.schedule, self.scaler, self.position, self.average.losses, self.history, run.seed,
            run.facts, self.validation.measured,
        )  # fmt: skip

    def _say(self, text: str) -> None:
        if self.run.processes.is_main:
            print(text, flush=True)
