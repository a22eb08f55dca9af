"""Faults that are planted, and what the simulated GPU makes of them. Everything given and returned is JSON."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import torch
from contract_table import TRAINING, Cell, row
from musubi_backend.architectures import loading
from musubi_backend.architectures.wan import model as wan_model
from musubi_backend.lora.network import LoRANetwork
from musubi_backend.memory import w8a8
from musubi_backend.memory.w8a8 import FORMATS, W8A8Linear
from musubi_backend.training import loop, randomness
from simulated_cases import Report, optimizer, report_of, training_bench
from simulated_device import GPU
from simulated_gpu import simulated_gpu
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DynamicOutputShapeException


def _text_in_float32(text: Any, length: int, dtype: torch.dtype, device: torch.device) -> Any:
    return _collapse(text, length, torch.float32, device)


_collapse = wan_model.collapse_padding


def _left_in_system_ram(model: nn.Module, *given: Any, **named: Any) -> None:
    _load_into(model, *given, **{**named, "stay": {"head.head.weight"}})


_load_into = loading.load_into


def _half(*given: Any, **named: Any) -> LoRANetwork:
    return _create(*given, **named).half()


_create = LoRANetwork.create


def _with_a_number(*given: Any) -> Tensor:
    loss = _loss(*given)
    assert loss.item() > 0
    return loss


_loss = loop.flow_matching_loss


def _cpu_noise(self: Any, seed: int, rank: int, device: torch.device) -> None:
    _drawing(self, seed, rank, device)
    self._device = torch.Generator()


_drawing = randomness.StepRandomness.__init__


FAULTS: dict[str, tuple[Any, str, Any]] = {
    "a weight left in system RAM": (loading, "load_into", _left_in_system_ram),
    "an input of another dtype": (wan_model, "collapse_padding", _text_in_float32),
    "gradients that the scaler rejects": (LoRANetwork, "create", _half),
    "a number read in the step": (loop, "flow_matching_loss", _with_a_number),
    "noise of the CPU's generator": (randomness.StepRandomness, "__init__", _cpu_noise),
}


_FEW = ("--network_args", "exclude_patterns=['.*']", "include_patterns=['.*blocks.0.self_attn.q']")


def planted(fault: str, family: str) -> Report:
    """A step with a fault in our own code. What PyTorch says of it is under "error"."""
    with patch.object(*FAULTS[fault]), simulated_gpu() as gpu, training_bench() as bench:
        error, cell = "", Cell(family, "auto", row(TRAINING, "plain"), "straight")
        try:
            bench._tool(bench.words(cell, bench.new_folder(), "--max_train_steps", "1", *_FEW))
        except (RuntimeError, ValueError, TypeError) as raised:
            error = str(raised)
        return {**report_of(gpu), "error": error}


def freed_while_read(told: bool) -> Report:
    """Memory freed while another stream may read it, then used again. told: with `record_stream`."""
    with simulated_gpu() as gpu:
        other = torch.cuda.Stream()
        x = torch.randn(8, device="cuda")
        other.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(other):
            kept = x * 2
        if told:
            x.record_stream(other)  # type: ignore[arg-type]
        del x
        fresh = torch.zeros(8, device="cuda")
        assert kept.shape == fresh.shape
        return report_of(gpu)


def read_on_the_host(waiting: bool, made: bool) -> Report:
    """A copy into pinned memory that the host reads before it is there. made: by the copy, else before it."""
    with simulated_gpu() as gpu:
        x = torch.randn(8, device="cuda")
        host = x.to("cpu", non_blocking=True) if made else torch.empty(8, pin_memory=True).copy_(x, non_blocking=True)
        if waiting:
            torch.cuda.current_stream().record_event().synchronize()
        host.sum()
        return report_of(gpu)


def cpu_generator() -> str:
    with simulated_gpu():
        try:
            torch.randn(3, device="cuda", generator=torch.Generator())
        except RuntimeError as error:
            return str(error)
    return ""


def to_numpy() -> str:
    with simulated_gpu():
        try:
            torch.randn(3, device="cuda").numpy()
        except TypeError as error:
            return str(error)
    return ""


_WAITING: dict[str, Callable[[Tensor], object]] = {
    "item": lambda x: x.sum().item(), "if": lambda x: bool(x.sum() > 0), "list": lambda x: x.tolist(), "to the host": lambda x: x.cpu(),
    "equal": lambda x: torch.equal(x, x), "made of numbers": lambda x: x + torch.tensor([1.0], device="cuda"),
    "chosen by a mask": lambda x: x[x > 0],
}  # fmt: skip


def waiting() -> dict[str, int]:
    """How often the host stands still in each of `_WAITING`; in the last line, in what needs no wait."""
    found: dict[str, int] = {}
    for name, run in {**_WAITING, "none": lambda x: x.to("cuda").mul_(2.0).sum().sqrt()}.items():
        with simulated_gpu() as gpu:
            x = torch.randn(3, device="cuda")
            with contextlib.suppress(DynamicOutputShapeException):  # of what has as many numbers as the device says
                run(x)
            found[name] = sum(gpu.waited.values())
    return found


def few_rows() -> str:
    """A product of int8 numbers with fewer rows than CUDA multiplies."""
    with simulated_gpu(), patch.object(w8a8, "_LEAST_ROWS", 1):
        linear = W8A8Linear(32, 48, False, FORMATS["int8"]).requires_grad_(False)
        linear.weight = nn.Parameter(linear.take(torch.randn(48, 32), None, GPU), requires_grad=False)
        try:
            linear.to("cuda")(torch.randn(16, 32, device="cuda"))
        except RuntimeError as error:
            return str(error)
    return ""


def _reading_step(self: torch.optim.SGD) -> object:
    assert self.param_groups[0]["params"][0].grad.norm().item() > 0
    return _sgd_step(self)


_sgd_step = torch.optim.SGD.step


def reading_optimizer() -> Report:
    """One that reads a number of the device in its step."""
    with patch.object(torch.optim.SGD, "step", _reading_step):
        return optimizer("torch.optim.SGD")
