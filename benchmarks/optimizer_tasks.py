"""What optimizers are compared on: a LoRA that learns to do what another one does, on a small MLP and on a tiny Wan.

Loss is the error on inputs that are not trained on, over that without the LoRA: 1 at the start, 0 when nothing is left to learn.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from musubi_backend.architectures.wan.card import CARD
from musubi_backend.architectures.wan.geometry import WanGeometry
from musubi_backend.architectures.wan.model import WanTransformer
from musubi_backend.lora.network import LoRANetwork
from torch import Tensor

RANK, TEACHERS = 8, 4
WIDTHS = (64, 128, 128, 128, 32)
GEOMETRY = WanGeometry(dim=32, ffn_dim=64, num_heads=2, num_layers=2, text_dim=16, text_len=4, freq_dim=16)
Named = list[tuple[str, Tensor]]


class Task(Protocol):
    """named: the trained weights; loss: of a fresh batch, to be gone back through; held_out: see above."""

    named: Named

    def loss(self) -> Tensor: ...

    def held_out(self) -> float: ...


def lora(shapes: Sequence[tuple[int, int]], rank: int, seed: int) -> Named:
    """Down and up matrices for weights [out, in]; ups are zeros."""
    chance = torch.Generator().manual_seed(seed)
    weights: Named = []
    for index, (out, inner) in enumerate(shapes):
        down = (torch.rand(rank, inner, generator=chance) * 2 - 1) * inner**-0.5
        weights += [
            (f"lora_unet_{index}.lora_down.weight", torch.nn.Parameter(down)),
            (f"lora_unet_{index}.lora_up.weight", torch.nn.Parameter(torch.zeros(out, rank))),
        ]
    return weights


class Regression:
    """A frozen MLP 64-128-128-128-32 with GELU; the teacher differs from it by rank 4 in every layer; fresh batches of 64, with noise."""

    def __init__(self, seed: int) -> None:
        chance = self._chance = torch.Generator().manual_seed(seed)
        shapes = list(zip(WIDTHS[1:], WIDTHS[:-1], strict=True))
        self._base = [torch.randn(shape, generator=chance) * shape[1] ** -0.5 for shape in shapes]
        self._teacher = []
        for weight in self._base:
            delta = torch.randn(weight.shape[0], TEACHERS, generator=chance) @ torch.randn(TEACHERS, weight.shape[1], generator=chance)
            self._teacher.append(weight + 0.8 * delta / torch.linalg.matrix_norm(delta, 2))
        self._inputs = torch.randn(512, WIDTHS[0], generator=chance)
        self._outputs = _mlp(self._teacher, self._inputs)
        self._noise = 0.1 * self._outputs.std()
        self._worst = (_mlp(self._base, self._inputs) - self._outputs).square().mean()
        self.named = lora(shapes, RANK, seed)

    def _layers(self) -> list[Tensor]:
        pairs = zip(self.named[::2], self.named[1::2], strict=True)
        return [weight + up @ down for weight, ((_, down), (_, up)) in zip(self._base, pairs, strict=True)]

    def loss(self) -> Tensor:
        inputs = torch.randn(64, WIDTHS[0], generator=self._chance)
        target = _mlp(self._teacher, inputs)
        target += self._noise * torch.randn(target.shape, generator=self._chance)
        return (_mlp(self._layers(), inputs) - target).square().mean()

    @torch.no_grad()
    def held_out(self) -> float:
        return float((_mlp(self._layers(), self._inputs) - self._outputs).square().mean() / self._worst)


class TinyWan:
    """A frozen Wan of width 32 with 2 layers and random weights, and our LoRA of rank 8 on all its linears; the teacher is the same model
    with a LoRA of rank 4. Inputs are noisy latents [4, 16, 1, 4, 4] at random noise levels, with a caption of 4 tokens."""

    def __init__(self, seed: int) -> None:
        self._chance = torch.Generator().manual_seed(seed)
        self._text = torch.randn(GEOMETRY.text_len, GEOMETRY.text_dim, generator=self._chance)
        self._student, self._learning = self._model(RANK, seed)
        self._teacher, teaching = self._model(TEACHERS, seed)
        with torch.no_grad():
            for name, weight in teaching.named_parameters():
                weight.copy_(torch.randn(weight.shape, generator=self._chance) * (0.5 if "up" in name else 1.0) * weight.shape[1] ** -0.5)
        self.named = list(self._learning.named_parameters())
        self._held = self._draw(32)
        with torch.no_grad():
            self._wanted = self._of(self._teacher, self._held)
            self._worst = (self._of(self._student, self._held) - self._wanted).square().mean()

    def _model(self, rank: int, seed: int) -> tuple[WanTransformer, LoRANetwork]:
        model = WanTransformer(GEOMETRY)
        chance = torch.Generator().manual_seed(5)
        with torch.no_grad():
            for name, weight in sorted(model.named_parameters()):
                scale = weight[0].numel() ** -0.5 if weight.ndim > 1 else 0.1
                weight.copy_(torch.randn(weight.shape, generator=chance) * scale + float("norm" in name))
        torch.manual_seed(seed)
        network = LoRANetwork.create(model.requires_grad_(False).eval(), CARD, rank, rank)
        return model, network.train()

    def _draw(self, count: int) -> tuple[Tensor, Tensor]:
        clean, noise = (torch.randn(count, 16, 1, 4, 4, generator=self._chance) for _ in range(2))
        level = torch.rand(count, generator=self._chance)
        at = level.view(-1, 1, 1, 1, 1)
        return (1 - at) * clean + at * noise, 1000 * level

    def _of(self, model: WanTransformer, drawn: tuple[Tensor, Tensor]) -> Tensor:
        noisy, timesteps = drawn
        result: Tensor = model(noisy, timesteps, [self._text] * len(noisy))
        return result

    def loss(self) -> Tensor:
        drawn = self._draw(4)
        with torch.no_grad():
            target = self._of(self._teacher, drawn)
        return (self._of(self._student, drawn) - target).square().mean()

    @torch.no_grad()
    def held_out(self) -> float:
        return float((self._of(self._student, self._held) - self._wanted).square().mean() / self._worst)


TASKS: dict[str, tuple[type[Regression] | type[TinyWan], int]] = {"regression": (Regression, 100), "wan": (TinyWan, 30)}
"""A task and the steps that each training of it has."""


def _mlp(layers: Sequence[Tensor], inputs: Tensor) -> Tensor:
    for index, weight in enumerate(layers):
        inputs = (torch.nn.functional.gelu(inputs) if index else inputs) @ weight.mT
    return inputs
