"""The real training loop, fed with what a recorded run of musubi-tuner was fed: the tests of it and of architectures use this.

Arguments, caches, model, network, optimizer and schedule come about as in any training (`train.prepare`); only the order of the batches,
the noise, the timesteps and the first weights are the recording's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from musubi_backend.architectures import protocol
from musubi_backend.options.parser import parse
from musubi_backend.training import train
from musubi_backend.training.distributed import OneProcess
from musubi_backend.training.lean_torch import leave_compiler_out
from musubi_backend.training.loop import Loop
from musubi_backend.training.randomness import StepRandomness
from musubi_backend.training.settings import TimestepSampling, TrainingSettings
from musubi_backend.training.timesteps import schedule_sigmas, schedule_timesteps
from torch import Tensor

Lora = dict[str, Tensor]


class RecordedDraws(StepRandomness):
    """Noise and timesteps of a recording instead of drawn ones."""

    def __init__(self, noise: dict[str, Tensor], timesteps: dict[str, Tensor]) -> None:
        super().__init__(0, 0, torch.device("cpu"))
        self.recorded_noise, self.recorded_timesteps = noise, timesteps

    def start(self, micro_step: int) -> None:
        super().start(micro_step)
        self.step = micro_step

    def noise(self, shape: Sequence[int]) -> Tensor:
        noise = self.recorded_noise[f"step{self.step}.noise"]
        assert noise.shape == tuple(shape)
        return noise

    def levels(
        self, sampling: TimestepSampling, shape: Sequence[int], u: Sequence[float] | None, boundary: float | None, step: int
    ) -> tuple[Tensor, Tensor]:
        timesteps = self.recorded_timesteps[f"step{self.step}.timesteps"]
        if sampling.timestep_sampling == "sigma":
            return schedule_sigmas()[(schedule_timesteps()[:, None] - timesteps).abs().argmin(dim=0)], timesteps
        return (timesteps - 1) / 1000, timesteps


class RecordedOrder:
    """The cached items of a real data set, as batches in the order of a recording."""

    def __init__(self, dataset: Any, firsts: list[Tensor]) -> None:
        """firsts: the first numbers of the latents of each step."""
        self.dataset, self.firsts = dataset, firsts

    def __getattr__(self, name: str) -> Any:
        return getattr(self.dataset, name)

    def batches(self, seed: int, epoch: int) -> list[Any]:
        every = self.dataset.batches(seed, epoch)
        firsts = [self.dataset.collate(batch)["latents"].flatten()[:8].float() for batch in every]
        wanted = self.firsts[(epoch - 1) * len(every) :][: len(every)]
        return [every[next(index for index, first in enumerate(firsts) if torch.equal(first, one))] for one in wanted]


def prepared(architecture: str, tool: str, words: Sequence[object], dtype: torch.dtype | None = None) -> Loop:
    """The loop of a command line, ready to start. dtype: of the arithmetic, where no flag gives the one of the recording."""
    args = parse(tool, [str(word) for word in words])
    found = protocol.load(architecture).configured(vars(args))
    leave_compiler_out()
    settings = TrainingSettings.read(args)
    precision = train.check(settings, found)
    precision = replace(precision, dtype=dtype or precision.dtype)
    return train.prepare(settings, vars(args), found, OneProcess(torch.device("cpu")), precision)


def stage(trace: dict[str, Tensor], name: str) -> Lora:
    """The LoRA of one point of a recording."""
    prefix = f"{name}."
    return {key.removeprefix(prefix): tensor for key, tensor in trace.items() if key.startswith(prefix)}


class Replay:
    """One recorded run of Wan's trainer."""

    def __init__(self, case: dict[str, Any], trace: dict[str, Tensor], full: dict[str, Tensor], words: Sequence[object]) -> None:
        """full: the recording that has the noise and the latents of each step where `trace` has not. words: flags behind the case's."""
        self.case, self.trace, self.full = case, trace, full
        self.loop = prepared("wan", "wan_train_network", [*case["argv"][1:], *words])
        self.steps = len(case["losses"])
        own = [trace.get(f"step{step}.latents_first8") for step in range(self.steps)]
        firsts = [full[f"step{step}.latents"].flatten()[:8] if one is None else one for step, one in enumerate(own)]
        self.loop.run.dataset = RecordedOrder(self.loop.run.dataset, firsts)  # type: ignore[assignment]
        self.loop.randomness = RecordedDraws(full if case["noise_in"] == "fp32" else trace, trace)
        self.loop.run.network.load_state_dict(stage(trace, "lora_init"))
        self.after: list[Lora] = []
        self.loop.run.choice.optimizer.register_step_post_hook(lambda *_: self.after.append(self.now()))

    def now(self) -> Lora:
        return {key: value.detach().clone() for key, value in self.loop.run.network.state_dict().items()}

    def run(self, rtol: float) -> float:
        """Trains, comparing the losses; returns the largest relative difference of the LoRA's movement after any recorded step."""
        self.loop.start()
        assert self.loop.history == pytest.approx(self.case["losses"], rel=rtol)
        assert len(self.after) == self.steps
        first = stage(self.trace, "lora_init")
        recorded = [step for step in range(self.steps) if stage(self.trace, f"lora_after_step{step}")]
        assert recorded[-1] == self.steps - 1
        return max(_apart(self.after[step], stage(self.trace, f"lora_after_step{step}"), first) for step in recorded)


def _apart(ours: Lora, theirs: Lora, first: Lora) -> float:
    difference = sum(float((ours[key] - theirs[key]).square().sum()) for key in theirs)
    return math.sqrt(difference / sum(float((theirs[key] - first[key]).square().sum()) for key in theirs))
