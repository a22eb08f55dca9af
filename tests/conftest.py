"""What every test gets: the shared reference data, the pack as ComfyUI loads it, a ComfyUI checkout, and no network."""

from __future__ import annotations

import gc
import importlib
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import float32_cpu
import pytest
from hypothesis import HealthCheck, settings
from musubi_backend import threads

REPOSITORY = Path(__file__).resolve().parent.parent
_LOOPBACK = ("127.", "::1", "localhost", "::ffff:127.")

# Set before any library reads them. Child processes inherit them: a download there meets a proxy that rejects.
os.environ.setdefault("OMP_NUM_THREADS", "1")
for _name, _value in threads.PASSIVE.items():
    os.environ.setdefault(_name, _value)
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"
os.environ["NO_PROXY"] = os.environ["no_proxy"] = "127.0.0.1,localhost,::1"
for _name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
    os.environ[_name] = os.environ[_name.lower()] = "http://127.0.0.1:9"


class NetworkUsed(AssertionError):
    """A test reached for another machine."""


def _refuse_other_machines(address: Any) -> None:
    if isinstance(address, tuple) and not str(address[0]).startswith(_LOOPBACK):
        raise NetworkUsed(f"a test tried to connect to {address[0]}:{address[1]}; tests use no network")


def _guard_sockets() -> None:
    real_connect, real_connect_ex = socket.socket.connect, socket.socket.connect_ex

    def connect(self: socket.socket, address: Any) -> None:
        _refuse_other_machines(address)
        real_connect(self, address)

    def connect_ex(self: socket.socket, address: Any) -> int:
        _refuse_other_machines(address)
        return real_connect_ex(self, address)

    socket.socket.connect = connect  # type: ignore[method-assign, assignment]
    socket.socket.connect_ex = connect_ex  # type: ignore[method-assign, assignment]


_guard_sockets()
float32_cpu.pretend()
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a background shell leaves it, for children too: tests press Ctrl-C
    signal.signal(signal.SIGINT, signal.default_int_handler)
settings.register_profile("same examples on every run", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("same examples on every run")
_modules_seen = 0


def pytest_runtest_teardown() -> None:
    """Take what libraries keep for good out of the garbage collector's sight: with transformers imported every collection, of which a
    generation makes three, would walk a million objects and take most of the time of a tiny one."""
    global _modules_seen
    if len(sys.modules) - _modules_seen > 100:
        gc.collect()
        gc.freeze()
        _modules_seen = len(sys.modules)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full", action="store_true", help="also what repeats others in another place, and all of tests/contract")


def pytest_runtest_setup(item: pytest.Item) -> None:
    mark = item.get_closest_marker("full")
    if mark is not None and not item.config.getoption("--full"):
        pytest.skip(f"with --full only ({mark.kwargs['reason']})")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give each worker files with slow tests first, and short tests last: those can be taken by another that has nothing left."""
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    slow = [item for item in items if item.get_closest_marker("slow")]
    fast = [item for item in items if not item.get_closest_marker("slow")]
    files = list(dict.fromkeys(item.path for item in slow))
    items.clear()
    for worker in range(workers):  # xdist begins with one run of neighbours for each
        own = set(files[worker::workers])
        items += [item for item in slow if item.path in own]
        items += fast[len(fast) * worker // workers : len(fast) * (worker + 1) // workers]


@pytest.fixture(scope="session")
def repository() -> Path:
    return REPOSITORY


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with `golden/` and `contracts/`: $MUSUBITUNER_SHARED, else `shared` next to the repository. Skips without it."""
    path = Path(os.environ.get("MUSUBITUNER_SHARED") or REPOSITORY.parent / "shared")
    if not (path / "golden").is_dir():
        pytest.skip(f"no reference data in {path}: set MUSUBITUNER_SHARED to the folder that holds golden/ and contracts/")
    return path


@pytest.fixture(scope="session")
def reference_hunyuan_vae(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny HunyuanVideo VAE of the reference data, with the one size its shapes do not tell in its metadata."""
    from safetensors.torch import load_file, save_file

    path = tmp_path_factory.mktemp("hunyuan_vae") / "hv_vae.safetensors"
    save_file(load_file(shared / "golden/vae_te/hv_vae.safetensors"), path, {"musubi_geometry": '{"norm_num_groups": 2}'})
    return path


COMFYUI_CHECKOUTS = os.environ.get("COMFYUI_PATH", "").split(os.pathsep)


@pytest.fixture(scope="session", params=COMFYUI_CHECKOUTS, ids=lambda named: Path(named).name or "no ComfyUI")
def comfyui_path(request: pytest.FixtureRequest) -> Path:
    """A ComfyUI checkout, named by $COMFYUI_PATH: each of several, with the separator of PATH between them. Skips without one."""
    named: str = request.param
    if not named:
        pytest.skip("set COMFYUI_PATH to a ComfyUI checkout to run this")
    if not (Path(named) / "main.py").is_file():
        pytest.fail(f"COMFYUI_PATH={named} holds no ComfyUI (no main.py)")
    return Path(named)


@pytest.fixture(scope="session")
def comfyui_python(comfyui_path: Path) -> Path:
    """The python that runs that ComfyUI: $COMFYUI_PYTHON (one for all checkouts, or one for each in their order), else the environment
    inside the checkout. Skips without one."""
    inside = [comfyui_path / folder / "bin" / "python" for folder in (".venv", "venv")]
    named = [Path(python) for python in os.environ.get("COMFYUI_PYTHON", "").split(os.pathsep) if python]
    if len(named) > 1:
        named = [named[COMFYUI_CHECKOUTS.index(str(comfyui_path))]]
    for python in named or inside:
        if python.is_file():
            return python
    pytest.skip("set COMFYUI_PYTHON to the python that runs ComfyUI")


@pytest.fixture(scope="session")
def part() -> Any:
    """The pack loaded as ComfyUI does, from its folder under a name of the loader's choosing: `part("nodes.spec")` is that module."""
    name = "pack_under_test"
    spec = importlib.util.spec_from_file_location(name, REPOSITORY / "__init__.py", submodule_search_locations=[str(REPOSITORY)])
    assert spec and spec.loader
    sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[name])
    return lambda module: importlib.import_module(f"{name}.{module}")


@pytest.fixture(scope="session")
def backend_python(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The backend's python for homes in which many jobs run: `warm_python.py`, where the system can do that."""
    if sys.platform != "linux":
        yield sys.executable
        return
    from warm_python import served

    with served(tmp_path_factory.mktemp("warm python")) as program:
        yield str(program)


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Any]:
    """A window of Chromium (`browser.py`). Skips without."""
    from browser import opened

    with opened(tmp_path) as window:
        yield window


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """An empty file system of 2 MB. Skips where none can be mounted."""
    folder = tmp_path / "small disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    if sys.platform != "linux" or os.geteuid() != 0 or subprocess.run(mount, check=False, capture_output=True).returncode != 0:
        pytest.skip("mounting a small file system needs root on Linux")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture(params=["file in the way", "full disk", "read-only disk"])
def unwritable(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, str]:
    """A folder that nothing can be written into, not by root either, and what a message must say of it."""
    if request.param == "file in the way":
        (tmp_path / "taken").write_text("x")
        return tmp_path / "taken" / "deep", f"{tmp_path / 'taken'} is a file"
    disk: Path = request.getfixturevalue("small_disk")
    (disk / "deep").mkdir()
    if request.param == "read-only disk":
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        return disk / "deep", "Read-only file system"
    (disk / "filler").write_bytes(bytes(shutil.disk_usage(disk).free))
    return disk / "deep", "no space left on the disk"
