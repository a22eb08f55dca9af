"""The Resource Monitor: what is seen of a machine, per process and at most; with or without a GPU; and what that means in words."""

from __future__ import annotations

import asyncio
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import psutil
import pytest
from musubi_backend.tools import resources

GB = 1 << 30


class Nvml(ModuleType):
    """NVML of a machine with one card: what it says is taken from lists, the last for good."""

    class NVMLError(Exception):
        pass

    NVML_TEMPERATURE_GPU = 0
    nvmlClocksThrottleReasonSwThermalSlowdown = 0x20
    nvmlClocksThrottleReasonHwThermalSlowdown = 0x40

    def __init__(self, used: list[int], own: int | None, hot: int = 0, driver: bool = True) -> None:
        super().__init__("pynvml")
        self.used, self.own, self.hot, self.driver = used, own, hot, driver

    def nvmlInit(self) -> None:
        if not self.driver:
            raise self.NVMLError("NVML Shared Library Not Found")

    def nvmlDeviceGetCount(self) -> int:
        return 1

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return 100 + index

    def nvmlDeviceGetName(self, handle: int) -> bytes:
        return b"A Card"

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> Any:
        used = self.used.pop(0) if len(self.used) > 1 else self.used[0]
        return SimpleNamespace(total=24 * GB, used=used)

    def nvmlDeviceGetUtilizationRates(self, handle: int) -> Any:
        raise self.NVMLError("Not Supported")

    def nvmlDeviceGetTemperature(self, handle: int, sensor: int) -> int:
        return 91

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, handle: int) -> int:
        return self.hot

    def nvmlDeviceGetComputeRunningProcesses(self, handle: int) -> list[Any]:
        return [SimpleNamespace(pid=os.getpid(), usedGpuMemory=self.own)]

    def nvmlDeviceGetGraphicsRunningProcesses(self, handle: int) -> list[Any]:
        return [SimpleNamespace(pid=os.getpid(), usedGpuMemory=None), SimpleNamespace(pid=2**30, usedGpuMemory=2 * GB)]


def test_a_gpu_is_seen_with_its_processes_and_its_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", Nvml([3 * GB, 9 * GB, 4 * GB], own=GB, hot=0x40))
    watch = resources.Watch([os.getpid(), 2**30])
    for _ in range(3):
        watch.look()
    seen = watch.report()
    [gpu] = seen["gpus"]
    assert (gpu["name"], gpu["total"], gpu["used"], gpu["peak"]) == ("A Card", 24 * GB, 4 * GB, 9 * GB)
    assert (gpu["busy"], gpu["temperature"], gpu["hot"], seen["gpu_problem"]) == (None, 91, True, "")
    assert gpu["processes"] == [
        {"pid": os.getpid(), "name": psutil.Process().name(), "used": GB, "peak": GB},
        {"pid": 2**30, "name": "", "used": 2 * GB, "peak": 2 * GB},
    ]
    [mine] = seen["processes"]
    assert mine["pid"] == os.getpid() and mine["peak"] >= mine["used"] > 0, "one that is gone is left out"
    json.dumps(seen, allow_nan=False)


@pytest.mark.parametrize(("module", "said"), [(None, "installs nvidia-ml-py"), (Nvml([0], None, driver=False), "Shared Library Not Found")])
def test_without_a_gpu_it_says_so(monkeypatch: pytest.MonkeyPatch, module: Any, said: str) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", module)
    watch = resources.Watch([])
    watch.look()
    assert watch.report()["gpus"] == [] and said in watch.report()["gpu_problem"]
    assert watch.report()["ram"]["total"] == psutil.virtual_memory().total


def test_the_peak_of_a_process_is_of_all_that_it_started() -> None:
    large = "x = b'x' * 80_000_000; print(1, flush=True); input()"
    code = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {large!r}]).wait()"
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None and process.stdout.readline() == b"1\n"
        watch = resources.Watch([process.pid])
        watch.look()
        [found] = watch.report()["processes"]
        assert found["used"] > 80_000_000 and len(found["pids"]) == 2
    finally:
        process.communicate(b"\n")


def machine(
    gpu: dict[str, Any] | None = None, *, system: str = "Linux", ram: float = 8, swap: float = 0, **processes: float
) -> dict[str, Any]:
    """A report; processes: p<pid> takes so many GB of the GPU."""
    card = {"index": 0, "name": "A Card", "total": 24 * GB, "used": 10 * GB, "busy": 99, "temperature": 60, "hot": False, **(gpu or {})}
    card.setdefault("peak", card["used"])
    card["processes"] = [
        {"pid": int(name[1:]), "name": f"program{name[1:]}", "used": None if value < 0 else int(value * GB), "peak": int(value * GB)}
        for name, value in processes.items()
    ]
    return {
        "system": system,
        "gpus": [card] if gpu is not None else [],
        "gpu_problem": "" if gpu is not None else "there is no NVIDIA GPU",
        "ram": {"total": 32 * GB, "used": int(ram * GB), "peak": int(ram * GB)},
        "swap": {"total": 16 * GB, "used": int(swap * GB)},
        "processes": [{"pid": 7, "pids": [7, 8], "name": "python", "used": 3 * GB, "peak": 4 * GB}],
    }


@pytest.mark.parametrize(
    ("seen", "job", "said"),
    [
        (machine(), {}, []),
        (machine({}), {}, []),
        (machine({"used": 23.5 * GB}, p8=20), {}, ["A Card is full (23.5 GB of 24.0 GB): fewer frames"]),
        (machine({"used": 10 * GB, "peak": 23.9 * GB}, p8=8), {}, ["A Card is full"]),
        (machine({"used": 10 * GB}, p8=8), {"swaps": True}, ["14.0 GB of A Card stay free: with fewer blocks_to_swap"]),
        (machine({"used": 10 * GB}, p8=8), {"swaps": False}, []),
        (machine({}, p1=6, p8=8), {}, ["ComfyUI's own models take 6.0 GB"]),
        (machine({}, p9=3, p8=8), {}, ["program9 (9) takes 3.0 GB of A Card"]),
        (machine({}, p9=0.1, p1=-1), {}, []),
        (machine({"hot": True}), {}, ["slowed by heat (60 °C)"]),
        (machine({}, ram=31.9), {"swaps": True}, ["System RAM is full (31.9 GB of 32.0 GB): close programs", "lower blocks_to_swap"]),
        (machine({}, ram=31.9), {}, ["lower max_data_loader_n_workers."]),
        (machine({}, ram=30, swap=5), {}, ["5.0 GB of RAM were moved to the disk"]),
        (machine({"used": 22 * GB}, system="Windows"), {"held": 30 * GB}, ["cat holds 30.0 GB", "at least 8.0 GB, lies in shared memory"]),
        (machine({"used": 22 * GB}), {"held": 30 * GB}, []),
        (machine({"used": 22 * GB}, system="Windows"), {"held": 21 * GB}, []),
        (machine({"used": 23.5 * GB}, system="Windows"), {"held": 21 * GB}, ["Prefer No Sysmem Fallback", "A Card is full"]),
    ],
)
def test_what_it_advises(part: Any, seen: dict[str, Any], job: dict[str, Any], said: list[str]) -> None:
    module = part("nodes.resource_advice")
    found = list(module.advice(seen, [module.Working("cat", 7, **job)], own_pid=1))
    text = "\n".join(found)
    assert all(one in text for one in said) and bool(found) == bool(said), text
    numbers = "\n".join(module.lines(seen, [module.Working("cat", 7)], own_pid=1))
    assert "cat (7): 3.0 GB, at most 4.0 GB" in numbers and "system RAM: " in numbers
    assert ("there is no NVIDIA GPU" in numbers) == (not seen["gpus"])


def test_the_node_looks_at_the_jobs_that_go_on_and_anew_each_time(part: Any, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "config.json").write_text(json.dumps({"interpreter": sys.executable}))
    host = part("headless.terminal").TerminalHost(home, screen=part("headless.terminal").Screen(io.StringIO()))
    me = psutil.Process(os.getppid())
    folder = part("nodes.jobs.folder").JobFolder.create(home, "wan_train_network")
    folder.write_task({"tool": "wan_train_network", "training": {"name": "cat", "values": {}}})
    folder.write_status("running", pid=me.pid, created=me.create_time())
    node = part("nodes.resource_monitor").ResourceMonitor()
    result = asyncio.run(node.run(host, **part("nodes.checks").complete(node.spec, {"seconds": 0.0})))
    report, gpu, ram = result.values
    assert f"cat ({me.pid}): " in report and f"this workflow ({os.getpid()}): " in report
    assert ram > 0 and gpu >= 0 and result.line in report and "not looked at" not in result.line
    assert node.fingerprint(host) != node.fingerprint(host)
