"""The tool `resources`: what GPUs, system RAM and some processes take, now and at most while it looks."""

from __future__ import annotations

import platform
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import psutil

from .. import durations, job
from ..atomic import write_text
from ..documents import json_text
from ..errors import StopRequested
from .settings import ResourceSettings


def run(args: Namespace) -> None:
    """Look for `--seconds`, then write what was seen as JSON to `--output`, or print it. See `Watch.report`."""
    settings = ResourceSettings.read(args)
    watch = Watch(settings.processes or ())
    end = time.monotonic() + settings.seconds
    watch.look()
    while (left := end - time.monotonic()) > 0:
        job.phase(f"looking, {left:.0f} s left")
        time.sleep(min(left, durations.BETWEEN_LOOKS))
        if job.stop_requested():
            raise StopRequested("stopped looking")
        watch.look()
    report = json_text(watch.report())
    if settings.output:
        write_text(settings.output, report)
    else:
        sys.stdout.write(report + "\n")


class Watch:
    """What was seen so far. processes: pids that are of interest, with all that they started."""

    def __init__(self, processes: Iterable[int]) -> None:
        self.gpus, self.gpu_problem = _gpus()
        self._pids = tuple(dict.fromkeys(processes))
        self._peaks: dict[object, int] = {}
        self._seen: dict[str, Any] = {}

    def look(self) -> None:
        """Once more."""
        memory, swap = psutil.virtual_memory(), psutil.swap_memory()
        used = memory.total - memory.available
        self._seen = {
            "system": "Windows" if "microsoft" in platform.release().lower() else platform.system(),  # WSL has the driver of Windows
            "ram": {"total": memory.total, "used": used, "peak": self._most("ram", used)},
            "swap": {"total": swap.total, "used": swap.used},
            "gpus": [self._of_gpu(gpu) for gpu in self.gpus],
            "gpu_problem": self.gpu_problem,
            "processes": [found for pid in self._pids if (found := self._of_process(pid))],
        }

    def report(self) -> dict[str, Any]:
        """All in bytes; None for what the driver does not tell (on Windows what each process takes of a GPU). used: now; peak: at most
        while it was looked, and of the RAM of a process since it began."""
        return self._seen

    def _of_gpu(self, gpu: Gpu) -> dict[str, Any]:
        seen = gpu.now()
        seen["peak"] = self._most(("gpu", gpu.index), seen["used"])
        for process in seen["processes"]:
            process["peak"] = None if process["used"] is None else self._most((gpu.index, process["pid"]), process["used"])
        return seen

    def _of_process(self, pid: int) -> dict[str, Any] | None:
        try:
            root = psutil.Process(pid)
            tree = [root, *root.children(recursive=True)]
            used = sum(one.memory_info().rss for one in tree)
            peak = self._most(pid, max(used, _peak_of(root) if len(tree) == 1 else 0))
            return {"pid": pid, "pids": [one.pid for one in tree], "name": root.name(), "used": used, "peak": peak}
        except psutil.Error:  # it has ended meanwhile
            return None

    def _most(self, what: object, value: int) -> int:
        self._peaks[what] = max(value, self._peaks.get(what, 0))
        return self._peaks[what]


class Gpu:
    """One GPU, as NVML numbers them. nvml: the module `pynvml`, ready."""

    def __init__(self, nvml: Any, index: int) -> None:
        self.index, self._nvml = index, nvml
        self._handle = nvml.nvmlDeviceGetHandleByIndex(index)
        name = nvml.nvmlDeviceGetName(self._handle)
        self.name = name.decode("utf-8", "replace") if isinstance(name, bytes) else str(name)

    def now(self) -> dict[str, Any]:
        """total, used: bytes of its memory; busy: percent of the time; temperature: °C; hot: whether it is slowed by heat."""
        nvml, handle = self._nvml, self._handle
        memory = nvml.nvmlDeviceGetMemoryInfo(handle)
        reasons = self._told(lambda: nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle)) or 0
        heat = nvml.nvmlClocksThrottleReasonSwThermalSlowdown | nvml.nvmlClocksThrottleReasonHwThermalSlowdown
        return {
            "index": self.index,
            "name": self.name,
            "total": int(memory.total),
            "used": int(memory.used),
            "busy": self._told(lambda: int(nvml.nvmlDeviceGetUtilizationRates(handle).gpu)),
            "temperature": self._told(lambda: int(nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU))),
            "hot": bool(reasons & heat),
            "processes": [{"pid": pid, "name": _name_of(pid), "used": used} for pid, used in sorted(self._processes().items())],
        }

    def _processes(self) -> dict[int, int | None]:
        """pid -> bytes, of those that compute or draw there; None where the driver does not tell."""
        found: dict[int, int | None] = {}
        for ask in (self._nvml.nvmlDeviceGetComputeRunningProcesses, self._nvml.nvmlDeviceGetGraphicsRunningProcesses):
            for one in self._told(lambda ask=ask: ask(self._handle)) or ():  # type: ignore[misc]
                used = one.usedGpuMemory
                found[int(one.pid)] = max(found.get(one.pid) or 0, int(used)) if used is not None else found.get(one.pid)
        return found

    def _told(self, ask: Callable[[], Any]) -> Any:
        """What the driver says; None for what it does not know of this GPU."""
        try:
            return ask()
        except self._nvml.NVMLError:
            return None


def _gpus() -> tuple[list[Gpu], str]:
    """The NVIDIA GPUs, or why there are none."""
    try:
        import pynvml
    except ImportError:
        return [], "GPUs are not looked at: `python install.py` installs nvidia-ml-py where there is an NVIDIA GPU"
    try:
        pynvml.nvmlInit()
        gpus = [Gpu(pynvml, index) for index in range(pynvml.nvmlDeviceGetCount())]
    except pynvml.NVMLError as error:
        return [], f"no NVIDIA GPU can be looked at: {error}"
    return gpus, "" if gpus else "there is no NVIDIA GPU"


def _name_of(pid: int) -> str:
    try:
        return psutil.Process(pid).name()
    except psutil.Error:  # another user's, or it has ended
        return ""


def _peak_of(process: psutil.Process) -> int:
    """The most RAM that a process ever had, where the system keeps that; else 0."""
    of_windows: int | None = getattr(process.memory_info(), "peak_wset", None)
    if of_windows is not None:
        return of_windows
    try:
        lines = Path(f"/proc/{process.pid}/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), 0)
