"""Asking for help or making a mistake must not cost seconds, and ComfyUI's python must be able to read the tables."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

HEAVY = ("torch", "numpy", "transformers", "diffusers", "accelerate", "safetensors", "av", "cv2", "PIL", "tqdm")


@pytest.mark.parametrize("arguments", [["--help"], ["--lerning_rate", "1"], ["--sdpa"]])
def test_help_and_bad_arguments_import_nothing_heavy(arguments: list[str], repository: Path) -> None:
    code = (
        "import sys\nfrom musubi_backend.__main__ import main\n"
        "try:\n    main(sys.argv[1:])\nexcept SystemExit:\n    pass\n"
        f"found = sorted(set({HEAVY!r}) & set(sys.modules))\nsys.exit(f'imported: {{found}}' if found else 0)"
    )
    environment = {**os.environ, "PYTHONPATH": str(repository / "backend")}
    done = subprocess.run([sys.executable, "-c", code, "wan_train_network", *arguments], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_help_is_quick(repository: Path) -> None:
    """The budget is 0.5 s; the best of three against thrice that, as test machines are shared."""
    environment = {**os.environ, "PYTHONPATH": str(repository / "backend")}
    times = []
    for _ in range(3):
        start = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "musubi_backend", "wan_train_network", "--help"], env=environment, capture_output=True, check=True
        )
        times.append(time.perf_counter() - start)
    assert min(times) < 1.5


def test_the_tables_need_only_the_standard_library(repository: Path) -> None:
    """As part of another package, in a python without any installed package, as inside ComfyUI."""
    code = (
        f"import sys; sys.path.insert(0, {str(repository)!r})\n"
        "from backend.musubi_backend.options.argv import to_argv\n"
        "from backend.musubi_backend.options.registry import options_for\n"
        "assert options_for('wan_train_network')['network_dim'].minimum == 1\n"
        "assert to_argv('wan_train_network', {'network_dim': 8}) == ['--network_dim', '8']\n"
        "assert not [name for name in sys.modules if name.startswith('musubi_backend')]"
    )
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(os.name != "posix", reason="named pipes and signals are POSIX")
def test_an_interrupted_tool_ends_with_one_line(repository: Path, tmp_path: Path) -> None:
    pipe = tmp_path / "dataset.toml"
    os.mkfifo(pipe)
    environment = {**os.environ, "PYTHONPATH": str(repository / "backend")}
    command = [sys.executable, "-m", "musubi_backend", "inspect_dataset", "--dataset_config", str(pipe)]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    with process, pipe.open("w"):  # opens when the tool opens the file to read, where it then waits
        process.send_signal(signal.SIGINT)
        _, printed = process.communicate(timeout=30)
    assert process.returncode == 130
    assert printed.splitlines()[-1] == "Interrupted." and "Traceback" not in printed
