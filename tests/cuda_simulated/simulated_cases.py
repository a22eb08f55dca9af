"""What is run on the simulated GPU, by `simulated_worker`. Everything given and returned is JSON."""

from __future__ import annotations

import contextlib
import gc
import io
import logging
import mmap
import os
import random
import socket
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from contract_bench import Bench
from contract_table import TRAINING, Cell, generating_cells, row, training_cells
from musubi_backend.errors import StopRequested
from musubi_backend.layers import offloaded, pinned
from musubi_backend.layers.blocks import Checkpointed, KeptAttention, Prepared, run_block
from musubi_backend.layers.by_block import Pass, by_block
from musubi_backend.layers.linear import Linear
from musubi_backend.layers.offloaded import Offloaded
from musubi_backend.layers.random_states import RandomStates
from musubi_backend.layers.recompute import Tier, once
from musubi_backend.lora.modules import LoRA
from musubi_backend.memory import fp8, streaming
from musubi_backend.memory.w8a8 import FORMATS, W8A8Linear
from musubi_backend.training import loop, optimizers
from musubi_backend.training.distributed import ManyProcesses
from musubi_backend.training.settings import OptimizerSettings
from simulated_device import GPU, Event, Simulation, registered
from simulated_gpu import simulated_gpu
from torch import Tensor, nn

from benchmarks import gpu as gpu_benchmark
from benchmarks.gpu_checks import Check
from benchmarks.gpu_measure import stepper
from benchmarks.gpu_models import SMALL, SMALLEST, Setting, build
from benchmarks.gpu_plan import Plans
from benchmarks.gpu_results import Clock as TimeLeft
from benchmarks.gpu_results import Results

Report = dict[str, Any]
_CELLS = {str(cell): cell for cells in (training_cells, generating_cells) for cell in cells(True)}


def report_of(gpu: Simulation) -> Report:
    return {
        "waits in steps": {f"{what}: {where}": count for (what, where), count in sorted(gpu.in_steps.items())},
        "validating": {f"{what}: {where}": count for (what, where), count in gpu.waited.items() if "validation" in where},
        "for the whole device": {where: count for (what, where), count in gpu.waited.items() if what == "device"},
        "races": gpu.order.races,
        "kernels": sum(gpu.kernels.values()),
        "copied": dict(gpu.copied),
    }


@contextlib.contextmanager
def training_bench() -> Iterator[Bench]:
    with tempfile.TemporaryDirectory() as folder:
        yield Bench(Path(folder), "cuda")


def cell(name: str) -> Report:
    """A cell of the contract's table, trained or generated."""
    with simulated_gpu() as gpu, training_bench() as bench:
        if name in {str(one) for one in generating_cells(True)}:
            bench.latents(_CELLS[name])
        else:
            bench.train(_CELLS[name])
        return report_of(gpu)


def training(family: str, setting: str, *more: str) -> Report:
    """Two steps of a row of the table, with more words on the command line. still pinned: bytes that it left so."""
    places: set[str] = set()
    gc.collect()  # what other cases pinned would be given back in a step of this one
    before = set(registered)

    def watched(weight: Tensor, *given: Any) -> Any:
        places.add(weight.device.type)
        return _quantise(weight, *given)

    with patch.object(fp8, "quantise", watched), simulated_gpu() as gpu, training_bench() as bench:
        words = bench.words(Cell(family, "auto", row(TRAINING, setting), "straight"), bench.new_folder(), *more)
        assert bench._tool(words) == 0
        gc.collect()
        pinned = sum(size for address, size in registered.items() if address not in before)
        return {**report_of(gpu), "quantised on": sorted(places), "still pinned": pinned}


_quantise = fp8.quantise


def caching(tool: str, *flags: str) -> Report:
    """Latents or texts of a clip, with the demo models."""
    from musubi_backend.demo.models import write_models
    from musubi_backend.inference.video_file import write_mp4
    from test_contract_caching import FRAMEPACK, FRAMES, HUNYUAN, HUNYUAN_TEXT, SIDE, WAN, WAN_TEXT, _cached

    verb = next(one for one in (WAN, HUNYUAN, FRAMEPACK, WAN_TEXT, HUNYUAN_TEXT) if one.tool == tool)
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root)
        models = write_models(folder / "models", kind=verb.kind)
        write_mp4(folder / "clips" / "clip.mp4", np.zeros((FRAMES, SIDE, SIDE, 3), np.uint8), fps=16)
        (folder / "clips" / "clip.txt").write_text("a clip", encoding="utf-8")
        with simulated_gpu() as gpu:
            _cached(verb, models, folder / "clips", folder / "caches", ["--device", "cuda", *flags])
            return report_of(gpu)


def resumed(family: str, setting: str, *more: str) -> Report:
    """A step, and another one from its state."""
    with simulated_gpu() as gpu, training_bench() as bench:
        cell, first = Cell(family, "auto", row(TRAINING, setting), "straight"), bench.new_folder()
        assert bench._tool(bench.words(cell, first, "--save_state", "--max_train_steps", "1", *more)) == 0
        (state,) = first.glob("*-state")
        gpu.in_steps.clear()
        assert bench._tool(bench.words(cell, bench.new_folder(), "--resume", str(state), "--max_train_steps", "2", *more)) == 0
        return report_of(gpu)


def stepped_down(family: str, setting: str, *more: str) -> Report:
    """Two steps, whose second one has no memory left at first. tried: how often a loss was computed."""
    tried: list[int] = []

    def full(*given: Any) -> Tensor:
        tried.append(len(tried))
        if len(tried) == 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return _loss(*given)

    with patch.object(loop, "flow_matching_loss", full):
        return {**training(family, setting, "--max_train_steps", "2", "--vram", "24", *more), "tried": len(tried)}


_loss = loop.flow_matching_loss


def refused_pinning() -> Report:
    """Swapped blocks and offloaded activations where the driver pins nothing."""
    said = io.StringIO()
    handler = logging.StreamHandler(said)
    pinned._say_refused.cache_clear()
    logging.getLogger(pinned.__name__).addHandler(handler)
    try:
        with patch.object(offloaded, "_pool", pinned.Pool()):
            return {**streamed(4, 2, 2, True, True, True, "", False), "said": said.getvalue()}
    finally:
        logging.getLogger(pinned.__name__).removeHandler(handler)


def pinned_sizes() -> list[int]:
    """What is registered for memory of a little more than four pages, and of nine."""
    page = mmap.PAGESIZE
    with simulated_gpu():
        before = {**registered}
        kept = [pinned.Pinned(4 * page + 1, GPU), pinned.Pinned(9 * page, GPU)]
        made = [size for address, size in registered.items() if address not in before]
        assert all(one.pinned for one in kept)
        del kept
        assert registered == before, "pages stayed pinned"
    return [size // page for size in made]


def a_group_without_nccl() -> list[Any]:
    """The process group of a training on GPUs where PyTorch lacks NCCL, as on Windows: of one process here, and with the means it has."""
    assert not torch.distributed.is_nccl_available()
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    place = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    with patch.dict(os.environ, place), simulated_gpu():
        group = ManyProcesses(None)
        try:
            return [str(group.device), group.any(True), group.gathered(torch.ones(2)).tolist()]
        finally:
            group.close()


def optimizer(name: str) -> Report:
    """Three steps of an optimizer on LoRAs, its two modes, and a state that is taken back. waits: of the last two of the steps."""
    shapes = {f"{layer}.lora_{end}.weight": shape for layer in "ab" for end, shape in (("down", (4, 64)), ("up", (96, 4)))}
    with simulated_gpu() as gpu:
        weights = {path: nn.Parameter(torch.randn(*shape, device="cuda")) for path, shape in shapes.items()}
        groups = [{"params": list(weights.values()), "lr": 1e-3}]
        choice = optimizers.build(OptimizerSettings(optimizer_type=name), 1e-3, groups, {id(one): path for path, one in weights.items()})

        def step() -> None:
            for one in weights.values():
                one.grad = torch.randn_like(one)
            choice.optimizer.step()
            choice.optimizer.zero_grad(set_to_none=True)

        choice.train()
        step()
        gpu.waited.clear()
        step()
        step()
        waited = sorted(f"{what}: {where}" for what, where in gpu.waited)
        choice.eval()
        choice.train()
        choice.optimizer.load_state_dict(choice.optimizer.state_dict())
        step()
        return {**report_of(gpu), "waits": waited}


def benchmark() -> Report:
    """Of the benchmark of GPUs, with its smallest model: all that saves memory at once, checked and as steps within a limit. left out,
    rows: of its results; waits: of a step."""
    swapped: Any = {"checkpointing": True, "fp8_scaled": True, "offload": True, "blocks_to_swap": 1}
    with tempfile.TemporaryDirectory() as folder, simulated_gpu() as gpu, patch.object(gpu_benchmark, "traced", lambda _: None):
        results = Results(Path(folder), {"device": "simulated"})
        battery = gpu_benchmark.Battery(GPU, results, Plans(GPU, Path(folder)), small=True)
        for setting in (Setting(**swapped, keep_attention=1, attention_in_ram=1), Setting(w8a8="fp8"), Setting(compiled=True)):
            battery.checking.check(Check(setting, 0.0), SMALL[0], TimeLeft(10))
        battery.measure(TimeLeft(10), SMALL[0], Setting(**swapped), SMALLEST, limit=8)
        step = stepper(build(SMALL[0], Setting(**swapped), GPU), SMALLEST)
        step()
        gpu.waited.clear()
        step()
        waited = sorted(f"{what}: {where}" for what, where in gpu.waited)
        return {**report_of(gpu), "rows": [*results.checks, *results.steps], "left out": results.left_out, "waits": waited}


def _not_waited_for(self: Any, arrival: Any) -> None:
    arrival.result()


def _too_early(self: Any, memory: Tensor, buffer: Tensor) -> Any:
    return self.worker.submit(self._copy, memory, buffer[: len(memory)], Event())


def _refilled(self: Any, source: Tensor) -> Tensor:
    filled: Tensor = self.home.memory[: len(source)].copy_(source)
    return filled


def _used_at_once(self: Offloaded) -> Tensor:
    self.fetch()
    assert self.back is not None
    return self.back


OVERTAKEN = {
    "a copy that is not waited for": (streaming._Transfers, "wait", _not_waited_for),
    "a copy that does not wait": (streaming._Transfers, "start", _too_early),
    "an activation that is not waited for": (Offloaded, "tensor", _used_at_once),
    "staging memory filled too early": (streaming._Staging, "filled", _refilled),
}


def eight_bit_product(name: str) -> Report:
    """A product in 8 bits and the gradient of its input, whose memory is transposed."""
    with simulated_gpu() as gpu:
        linear = W8A8Linear(32, 48, True, FORMATS[name]).requires_grad_(False)
        linear.weight = nn.Parameter(linear.take(torch.randn(48, 32), None, GPU), requires_grad=False)
        linear.to("cuda")
        x = torch.randn(32, 20, device="cuda", dtype=torch.bfloat16).t().requires_grad_()
        out = linear(x)
        out.backward(torch.randn(48, 20, device="cuda", dtype=torch.bfloat16).t())
        return report_of(gpu)


class _Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.up, self.down = Linear(width, 2 * width), Linear(2 * width, width)
        for linear in (self.up, self.down):
            linear.requires_grad_(False).bfloat16()
            linear.attach(LoRA(linear.in_features, linear.out_features, 2, 2.0).to("cuda"))

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = x + self.down(once(torch.sigmoid, self.up(x)))
        return result


class _Blocks(Checkpointed):
    def __init__(self, blocks: list[_Block], recompute: bool, offload: bool) -> None:
        super().__init__()
        self.blocks, self.gradient_checkpointing, self.gradient_checkpointing_cpu_offload = blocks, recompute, offload
        self.kept_attention = KeptAttention(0, 1000) if offload else KeptAttention(1000, 0)

    def prepared(self) -> Prepared:
        return Prepared(self.blocks, torch.randn(2, 3, 8, device="cuda", dtype=torch.bfloat16), (), lambda x: x)


def _give_up(_: Tensor) -> None:
    raise StopRequested("stopped")


def _squared_and_back(prediction: Tensor) -> None:
    prediction.float().square().sum().backward()


def streamed(
    count: int, swapped: int, ring: int, from_pinned: bool, recompute: bool, offload: bool, fault: str = "", pins: bool = True
) -> Report:
    """Blocks of which some are in system RAM: steps, inference, inference without a block, and passes that are given up, in an order of
    their own for every configuration. fault: one of `OVERTAKEN`. pins: does the driver pin memory?"""
    with contextlib.ExitStack() as stack:
        if fault:
            stack.enter_context(patch.object(*OVERTAKEN[fault]))
        gpu = stack.enter_context(simulated_gpu())
        gpu.pinning_fails = not pins
        blocks = [_Block(8) for _ in range(count)]
        waiting = set(streaming.swapped_blocks(count, swapped, ring))
        for number, block in enumerate(blocks):
            if number not in waiting:
                block.to("cuda")
        stream = streaming.BlockStream([blocks[number] for number in sorted(waiting)], torch.device("cuda"), ring, from_pinned)
        for block in blocks:
            for linear in (block.up, block.down):
                bias: Any = linear.bias
                bias.data = bias.data.to("cuda")

        def forward(chosen: list[_Block], until: _Block | None = None) -> Tensor:
            x = torch.randn(2, 3, 8, device="cuda", dtype=torch.bfloat16)
            for block in chosen:
                if block is until:
                    x.register_hook(_give_up)
                x = run_block(block, x, recompute=recompute, offload=offload, tier=Tier.IN_RAM if offload else Tier.ON_DEVICE)
            return x

        model = _Blocks(blocks, recompute, offload)
        order = random.Random(f"{count} {swapped} {ring}")
        done: Counter[str] = Counter()
        for kind in ("step", "together", "given up in backward", *order.sample(["step", "inference", "skipped", "given up"], 3)):
            done[kind] += 1
            if kind == "step":
                forward(blocks).float().square().sum().backward()
            elif kind == "together":
                random_states = RandomStates.now(torch.device("cuda"))
                by_block(model, [Pass(model.prepared, random_states, _squared_and_back) for _ in range(3)], lambda: None)
            elif kind == "given up in backward":
                with contextlib.suppress(StopRequested):
                    forward(blocks, until=blocks[count // 2]).float().square().sum().backward()
            elif kind == "given up":
                forward(blocks[: count // 2 + 1])
            else:
                with torch.no_grad():
                    forward([block for number, block in enumerate(blocks) if kind == "inference" or number != count // 2])
        for arrival in stream.arrivals:
            if arrival is not None:
                arrival.result()
        blocks.clear()
        del stream, block, linear  # copies of what would come next may be on their way
        gc.collect()
        torch.zeros(8, device="cuda")
        return {**report_of(gpu), "done": dict(done)}
