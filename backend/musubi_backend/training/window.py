"""The batches of an accumulation window, together (`--accumulate_by_block`)."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import UserError
from ..layers.blocks import Checkpointed, Prepared
from ..layers.by_block import Pass, by_block
from ..layers.experts import Experts, boundary_of, experts_of
from ..lora.expert_networks import ExpertNetworks
from .timesteps import noisy_input

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ..layers.random_states import RandomStates
    from .run import Run
    from .settings import TrainingSettings


class Drawn(NamedTuple):
    """A batch of cached tensors, its latents as they are trained on, and what was drawn for it: noise, its share t [B], timesteps [B]."""

    batch: dict[str, Any]
    latents: Tensor
    noise: Tensor
    t: Tensor
    timesteps: Tensor

    @property
    def noisy(self) -> Tensor:
        return noisy_input(self.latents, self.noise, self.t)


def batches_at_once(settings: TrainingSettings, transformer: nn.Module) -> int:
    """How many batches go through the model together: those of a window where that is asked for and weights come and go. UserError where
    this model cannot."""
    memory = settings.memory
    if not memory.accumulate_by_block or memory.fsdp or not (memory.blocks_to_swap or isinstance(transformer, Experts)):
        return 1
    if not all(isinstance(model, Checkpointed) for model in experts_of(transformer).values()):
        raise UserError("--accumulate_by_block: this model cannot be computed block by block; leave it out")
    return settings.length.gradient_accumulation_steps


def together(run: Run, window: Sequence[tuple[Drawn, RandomStates]], go_back: Callable[[Tensor, Drawn], Tensor]) -> list[Tensor]:
    """Forward and backward of all batches, block by block; gradients add up. Returns their losses, still on the device.

    window: the batches, each with the states of the random generators after its draws. go_back: from a prediction to the loss, and back.
    """
    losses: dict[int, Tensor] = {}

    def passing(model: Checkpointed, number: int) -> Pass:
        drawn, random = window[number]

        def prepare() -> Prepared:
            given, named = run.architecture.inputs(model, drawn.noisy, drawn.timesteps, drawn.batch)
            return model.prepared(*given, **named)

        def to_loss_and_back(prediction: Tensor) -> None:
            losses[number] = go_back(prediction, drawn)

        return Pass(prepare, random, to_loss_and_back)

    with run.network.working_in(run.dtype) as gather:
        for numbers in of_one_expert(run, [drawn for drawn, _ in window]):
            model = _working(run.transformer, window[numbers[0]][0])
            by_block(model, [passing(model, number) for number in numbers], gather)
    return [losses[number] for number in range(len(window))]


def of_one_expert(run: Run, window: Sequence[Drawn]) -> Iterator[list[int]]:
    """Numbers of batches that go together. Those of two experts with a LoRA each are sorted; where both train the same LoRA, the order of
    its gradients stays, so only neighbours go together."""
    boundary = boundary_of(run.transformer)
    numbers = list(range(len(window)))
    if boundary is None:
        yield numbers
        return
    low = [float(drawn.timesteps[0]) / 1000 < boundary for drawn in window]
    if isinstance(run.network, ExpertNetworks):
        numbers.sort(key=low.__getitem__)
    for _, group in itertools.groupby(numbers, key=low.__getitem__):
        yield list(group)


def _working(transformer: nn.Module, drawn: Drawn) -> Checkpointed:
    model = transformer.at(float(drawn.timesteps.flatten()[0])) if isinstance(transformer, Experts) else transformer
    assert isinstance(model, Checkpointed), "checked before training"
    return model
