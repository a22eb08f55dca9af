"""A GPU without a GPU: tensors on "cuda" have shape, dtype, device and memory, but no values; those on the CPU stay real.

Every operation on them is checked by PyTorch's own rules for shapes, dtypes and devices (FakeTensorMode); besides it is written down which
stream was asked for it, and what the host waited for (`simulated_order`). What comes back from the device is made up: 0.5, or 1.

For a process of its own: `simulated_driver` has to be there before torch is imported, and stays.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import simulated_device as device
import simulated_driver
import simulated_tensors as tensors
import torch
from musubi_backend.layers import offloaded
from simulated_operations import Dispatch, Functions, Generator
from torch import Tensor, nn
from torch._subclasses import fake_tensor
from torch._subclasses.fake_tensor import FakeTensorMode

CAPABILITY, TOTAL, FREE = (8, 9), 24 << 30, 20 << 30
NAME = "Simulated RTX 4090"
"""One whose speed is known, so that none is measured."""


def _in_mode(run: Callable[[threading.Thread], None]) -> Callable[[threading.Thread], None]:
    def start(thread: threading.Thread) -> None:
        torch._C._set_only_lift_cpu_tensors(True)  # of each thread
        with Dispatch():
            run(thread)

    return start


@contextmanager
def simulated_gpu(capability: tuple[int, int] = CAPABILITY, count: int = 1) -> Iterator[device.Simulation]:
    """PyTorch finds so many GPUs of 24 GB, of that compute capability."""
    made = device.Simulation()
    device.running.append(made)
    current = [0]

    def choose(chosen: Any) -> None:
        current[0] = chosen if isinstance(chosen, int) else torch.device(chosen).index or 0
        simulated_driver.choose_device(current[0])

    nothing, cuda = (lambda *_, **__: None), torch.cuda
    answers: dict[str, Any] = {
        "is_available": lambda: True, "device_count": lambda: count, "current_device": lambda: current[0], "is_initialized": lambda: True,
        "_lazy_init": nothing, "init": nothing, "empty_cache": nothing, "set_device": choose, "manual_seed": nothing,
        "manual_seed_all": nothing, "get_device_capability": lambda _=None: capability, "get_device_name": lambda _=None: NAME,
        "mem_get_info": lambda _=None: (FREE, TOTAL),
        "get_rng_state": lambda _=None: torch.zeros(16, dtype=torch.uint8), "set_rng_state": nothing,
        "is_bf16_supported": lambda *_, **__: True, "Stream": device.Stream, "Event": device.Event, "current_stream": device.current_stream,
        "stream": device.use_stream, "max_memory_allocated": lambda _=None: 1 << 30, "max_memory_reserved": lambda _=None: 1 << 30,
        "memory_reserved": lambda _=None: 1 << 30, "reset_peak_memory_stats": nothing, "set_per_process_memory_fraction": nothing,
    }  # fmt: skip
    lifts_cpu = torch._C._only_lift_cpu_tensors()
    cuda.cudart, cuda.synchronize = (
        (lambda: device.Driver),
        device.synchronize_device,
    )  # these stay: pinned memory may outlive the simulation
    with ExitStack() as undo:
        undo.callback(choose, 0)
        for name, answer in answers.items():
            undo.enter_context(patch.object(cuda, name, answer))
        undo.enter_context(patch.object(torch, "Generator", Generator))
        undo.enter_context(patch.object(torch, "save", tensors.save_with(torch.save)))
        undo.enter_context(patch.object(fake_tensor, "init_gpu_context", nothing))
        undo.enter_context(patch.object(fake_tensor.FakeTensor, "tolist", tensors.tolist_with(Tensor.tolist)))
        undo.enter_context(patch.object(FakeTensorMode, "avoid_device_init", property(lambda _: True)))
        undo.enter_context(patch.object(nn.Module, "_apply", tensors.apply_in_place))
        undo.enter_context(patch.object(threading.Thread, "run", _in_mode(threading.Thread.run)))
        undo.enter_context(patch.object(Tensor, "record_stream", lambda tensor, _: device.simulation().keep(tensor)))
        for name, replaced in (
            ("tolist", tensors.tolist_with(Tensor.tolist)),
            ("numpy", tensors.numpy_with(Tensor.numpy)),
            ("data", property(tensors.get_data, tensors.take_data)),
        ):
            setattr(Tensor, name, replaced)
            undo.callback(delattr, Tensor, name)
        torch._C._set_only_lift_cpu_tensors(True)
        undo.callback(torch._C._set_only_lift_cpu_tensors, lifts_cpu)
        undo.enter_context(Functions())
        undo.enter_context(Dispatch())
        undo.callback(device.running.pop)
        undo.callback(offloaded.unpin)  # what a case leaves is not unpinned in a step of the next one
        yield made
