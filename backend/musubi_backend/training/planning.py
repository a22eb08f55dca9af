"""What a training needs before it begins: its transformer, LoRA and one step of its largest batch on the device "meta".

Loaders, models, LoRA and loss are those that train, so that a plan knows every setting they know; nothing is read but headers, and
nothing is computed. Three blocks of each list stand for all (`memory.few_blocks`).
"""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch

from .. import job
from ..device import planned_for
from ..layers.blocks import KeptAttention
from ..layers.experts import Experts, boundary_of, experts_of
from ..layers.rope import rope_tables
from ..lora import run_network
from ..lora.working import copies_at_work
from ..memory import estimate as words
from ..memory.estimate import Estimate, Phase
from ..memory.few_blocks import FewBlocks, Measured
from ..memory.live_bytes import LiveBytes
from ..memory.plan import MemoryPlan, swappable
from ..optimizers import registry
from . import planned_samples
from .losses import flow_matching_loss, loss_weight
from .planned_batch import META, USUAL, Batch, like
from .settings import TrainingSettings
from .timesteps import noise_levels, noisy_input
from .vram import RESTING, WAITING_TEXTS
from .window import batches_at_once

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ..architectures.protocol import Architecture
    from ..architectures.request import SampleRequest

_CUDA_ITSELF = 700_000_000
"""Bytes that a CUDA context and its libraries take (0.4 to 0.8 GB on recent drivers); PyTorch does not count them."""


@dataclass(frozen=True)
class _Step:
    """Of one micro-step. away: bytes of inputs of blocks in system RAM; copies: of the LoRA in the dtype of the arithmetic."""

    measured: Measured
    away: int
    copies: int

    def towards(self, every: _Step, on_device: float, in_ram: float) -> _Step:
        """With the attention kept of a share of the recomputed blocks. every: the step with that of all of them on the device."""
        less, more = self.measured, every.measured
        kept, peak = more.kept - less.kept, more.peak - less.peak
        operations = int((on_device + in_ram) * (more.operations - less.operations))
        by_blocks = less.by_blocks + int(on_device * (more.by_blocks - less.by_blocks))
        measured = replace(
            less, kept=less.kept + int(on_device * kept), peak=less.peak + int(on_device * peak),
            operations=less.operations + operations, by_blocks=by_blocks,
        )  # fmt: skip
        return _Step(measured, self.away + int(in_ram * kept), self.copies)


@dataclass
class _Model:
    """A transformer on "meta" with its LoRA, and what was measured with it."""

    transformer: nn.Module
    network: run_network.Network
    steps: dict[tuple[object, ...], _Step] = field(default_factory=dict)
    sampling: int | None = None


class Planner:
    """Plans of one training with many settings. batch: its largest one (`largest_batch`); device: where it will train.

    What does not depend on a setting is not measured again.
    """

    def __init__(self, batch: Batch, dtype: torch.dtype, device: torch.device) -> None:
        self.batch, self.dtype, self.device = batch, dtype, device
        self._models: dict[tuple[object, ...], _Model] = {}
        self._coders: dict[tuple[object, ...], int] = {}
        self._largest: SampleRequest | None = None
        self._first_images: int | None = None

    def of(self, architecture: Architecture) -> Callable[[Mapping[str, Any]], Estimate]:
        """What a training needs, by the values of all options."""
        return lambda values: self.estimate(TrainingSettings.read(values), architecture.configured(values))

    def estimate(self, settings: TrainingSettings, architecture: Architecture) -> Estimate:
        """With these settings; the architecture has the same. UserError where a setting cannot be."""
        memory = settings.memory
        held_as = memory.fp8, memory.fp8_base, memory.fp8_scaled, memory.w8a8
        if held_as not in self._models:
            self._models[held_as] = _built(settings, architecture, self.dtype)
        model = self._models[held_as]
        step = self._measured(settings, architecture, model, KeptAttention())
        on_device, in_ram = memory.keep_attention_blocks, memory.offload_attention_blocks
        if memory.gradient_checkpointing and (on_device or in_ram):
            recomputed = max(1, sum(map(len, _block_lists(model.transformer))) - 1)
            every = self._measured(settings, architecture, model, KeptAttention(recomputed))
            step = step.towards(every, min(1.0, on_device / recomputed), min(1.0, in_ram / recomputed))
        resting = isinstance(model.transformer, Experts) and bool(architecture.settings.values().get(RESTING))
        whole = self._put_together(settings, model, step, resting)
        file = settings.sampling.sample_prompts
        if not file:
            return whole
        ram = max(whole.ram, self._text_encoder(architecture)[1])
        return replace(whole, phases=self._with_samples(file, architecture, model, whole.phases), ram=ram)

    def _with_samples(self, file: str, architecture: Architecture, model: _Model, phases: tuple[Phase, ...]) -> tuple[Phase, ...]:
        """With the phases of samples: their texts before the transformer is there, and the largest sample beside what is trained."""
        always = {name: size for name, size in phases[0].parts.items() if name == words.DRIVER}
        there = {**always, words.WEIGHTS: phases[0].parts[words.WEIGHTS], words.LORA: phases[0].parts[words.LORA]}
        request = self._request(file, architecture)
        if model.sampling is None:
            model.sampling = self._sampled(architecture, model, planned_samples.sides(request, architecture, self.batch["latents"]))
        parts = (
            Phase(words.PROMPTS, {words.ENCODER: self._text_encoder(architecture)[0], **always}),
            *phases,
            Phase(words.SAMPLING, {**there, words.WORKING: model.sampling}),
            Phase(words.DECODING, {**there, words.VAE: self._decoded(architecture, request)}),
        )
        images = self._images(architecture, request, max(phase.total for phase in parts) - sum(always.values()))
        return (parts[0], Phase(words.IMAGES, {words.IMAGE_ENCODERS: images, **always}), *parts[1:]) if images else parts

    def _images(self, architecture: Architecture, request: SampleRequest, others: int) -> int:
        """As it was held when first asked for, but where that would decide. others: bytes of the largest other phase."""
        if self._first_images is None or self._first_images > others:
            images = self._once(architecture, "images", ("vae",), lambda one: planned_samples.images(one, request))
            self._first_images = images if self._first_images is None else self._first_images
            return images
        return self._first_images

    def _request(self, file: str, architecture: Architecture) -> SampleRequest:
        if self._largest is None:
            self._largest = planned_samples.largest_request(file, architecture)
        return self._largest

    def _sampled(self, architecture: Architecture, model: _Model, sides: Mapping[str, int]) -> int:
        forms = architecture.cache_forms()
        every = {**forms.latents, **forms.texts}
        batch = {name: like(every[name], {**sides, **USUAL}, 1) for name in self.batch if name in every}
        network = model.network
        known = [tensor for one in experts_of(model.transformer).values() for tensor in (*one.parameters(), *one.buffers())]
        network.eval()
        taken = planned_samples.sampled(architecture, model.transformer, batch, [*known, *network.parameters(), *network.buffers()])
        network.train()
        return taken

    def _decoded(self, architecture: Architecture, request: SampleRequest) -> int:
        return self._once(architecture, "decoded", ("vae",), lambda one: planned_samples.decoded(one, request, self.batch["latents"]))

    def _text_encoder(self, architecture: Architecture) -> tuple[int, int]:
        """Bytes on the device and in system RAM."""
        held_as = ("fp8", WAITING_TEXTS)
        taken = self._once(architecture, "texts", held_as, planned_samples.text_encoders)
        values = architecture.settings.values()
        if not values.get(WAITING_TEXTS):
            return taken, 0
        whole = architecture.configured({**values, WAITING_TEXTS: False})
        return taken, self._once(whole, "texts", held_as, planned_samples.text_encoders)

    def _once(self, architecture: Architecture, what: str, settings: tuple[str, ...], plan: Callable[[Architecture], int]) -> int:
        """Bytes of an encoder or decoder, planned once for each way of holding it: for the values of the options that begin with one of
        `settings`."""
        values = architecture.settings.values()
        held_as: tuple[object, ...] = what, *sorted((name, value) for name, value in values.items() if name.startswith(settings))
        if held_as not in self._coders:
            with _silence(), planned_for(self.device):
                self._coders[held_as] = plan(architecture)
        return self._coders[held_as]

    def _measured(self, settings: TrainingSettings, architecture: Architecture, model: _Model, attention: KeptAttention) -> _Step:
        memory = settings.memory
        runs_as = memory.gradient_checkpointing, memory.gradient_checkpointing_cpu_offload, attention
        if runs_as not in model.steps:
            model.steps[runs_as] = self._step(settings, architecture, model, attention)
        return model.steps[runs_as]

    def _put_together(self, settings: TrainingSettings, model: _Model, step: _Step, resting: bool) -> Estimate:
        weights, ram, swapped = _weights(settings, model.transformer, resting)
        lora = sum(parameter.nbytes for parameter in model.network.parameters())
        state = _state(settings, lora)
        accumulated = settings.length.gradient_accumulation_steps
        inputs = 2 * sum(tensor.nbytes for tensor in _tensors(self.batch))  # the next one comes while this one is computed
        always = {words.WEIGHTS: weights, **({words.DRIVER: _CUDA_ITSELF} if self.device.type == "cuda" else {})}
        measured = step.measured
        at_once = batches_at_once(settings, model.transformer)
        others = (at_once - 1) * measured.by_blocks  # of the window's other batches
        kept = min(measured.kept - measured.last, measured.peak)
        trained = lora + step.copies + state + (lora if accumulated > 1 else 0)  # gradients of one micro-step are in what was measured
        phases = (
            Phase(words.STEP, {**always, words.LORA: trained, words.KEPT: kept + others, words.WORKING: measured.peak - kept + inputs}),
            Phase(words.UPDATE, {**always, words.LORA: 2 * (lora + step.copies) + state, words.WORKING: inputs}),
        )
        counts = [len(blocks) for blocks in _block_lists(model.transformer)]
        return Estimate(
            phases, ram + at_once * step.away, measured.operations * accumulated, 2 * swapped * accumulated // at_once, sum(counts),
            0 if resting or settings.memory.fsdp else swappable(counts),
        )  # fmt: skip

    def _step(self, settings: TrainingSettings, architecture: Architecture, model: _Model, attention: KeptAttention) -> _Step:
        """Forward and backward of one micro-step, as `Loop._backward` has them."""
        batch, transformer, memory = self.batch, model.transformer, settings.memory
        switches: Any = transformer
        offload = memory.gradient_checkpointing and memory.gradient_checkpointing_cpu_offload
        switches.gradient_checkpointing, switches.gradient_checkpointing_cpu_offload = memory.gradient_checkpointing, offload
        switches.kept_attention = attention
        known = [tensor for one in experts_of(transformer).values() for tensor in (*one.parameters(), *one.buffers())]
        known += [*model.network.parameters(), *model.network.buffers(), *_tensors(batch)]
        rope_tables.cache_clear()  # those of a former plan would not be counted
        latents = architecture.scale_latents(batch["latents"].float())
        generator, boundary = torch.Generator().manual_seed(0), boundary_of(transformer)
        t, timesteps = noise_levels(settings.timesteps, latents.shape, generator, batch.get("timesteps"), boundary)
        working: Any = transformer.at(float(timesteps[0])) if isinstance(transformer, Experts) else transformer
        with model.network.working_in(self.dtype):
            copies = copies_at_work(model.network)
            count = LiveBytes(META, [*known, *copies])
            few = FewBlocks(working.block_lists(), count, offload and self.device.type == "cuda")
            with count:
                noise = torch.empty_like(latents)
                prediction = architecture.predict(transformer, noisy_input(latents, noise, t), timesteps, dict(batch))
                weight = loss_weight(settings.timesteps.weighting_scheme, timesteps, self.dtype, latents.ndim)
                loss = flow_matching_loss(prediction, latents, noise, weight)
                kept, away = count.live - few.away, few.whole_away
                if loss.requires_grad:
                    loss.backward()
        rope_tables.cache_clear()
        for parameter in model.network.parameters():
            parameter.grad = None
        return _Step(few.result(kept), away, sum(copy.nbytes for copy in copies))


def _built(settings: TrainingSettings, architecture: Architecture, dtype: torch.dtype) -> _Model:
    values = architecture.settings.values()
    together = {RESTING: False} if RESTING in values else {}  # where an expert is changes nothing of a step
    unswapped = architecture.configured({**values, **together, "blocks_to_swap": 0})
    with _silence():
        transformer = unswapped.transformer(META, dtype).requires_grad_(False)
        with META:
            return _Model(transformer, run_network.build(settings.network, architecture.card, transformer, 0, META))


def _block_lists(transformer: nn.Module) -> list[nn.ModuleList]:
    """Of one expert, as only one works at a time."""
    model: Any = next(iter(experts_of(transformer).values()))
    lists: list[nn.ModuleList] = model.block_lists()
    return lists


def _weights(settings: TrainingSettings, transformer: nn.Module, resting: bool) -> tuple[int, int, int]:
    """Bytes of weights on the device, in system RAM, and of those there that are copied in each pass. resting: the expert that is not
    at work waits in system RAM."""
    plan = MemoryPlan.chosen(settings.memory)
    sizes = [plan.weights(model) for model in experts_of(transformer).values()]
    on_device, swapped = [one for one, _ in sizes], sum(other for _, other in sizes)
    if resting or (isinstance(transformer, Experts) and transformer.lazy):
        return max(on_device), swapped + (sum(on_device) if resting else 0), swapped
    return sum(on_device), swapped, swapped


def _state(settings: TrainingSettings, lora: int) -> int:
    """Bytes of the optimizer's state; of one that the table does not have, two numbers per weight."""
    entry = registry.find(settings.optimizer.optimizer_type)
    return int(lora / 4 * (8 if entry is None else entry.state))


def _tensors(batch: Batch) -> Iterator[Tensor]:
    for value in batch.values():
        yield from (one for one in (value if isinstance(value, list) else [value]) if isinstance(one, torch.Tensor) and one.is_meta)


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """What loading says will be said when it loads."""
    before = logging.root.manager.disable
    logging.disable(logging.INFO)
    try:
        with contextlib.redirect_stdout(io.StringIO()), job.phases_unsaid():
            yield
    finally:
        logging.disable(before)
