"""Asking for help or making a mistake must not cost seconds, and ComfyUI's python must be able to read the tables."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest


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
    lines = [json.dumps({"image_path": str(tmp_path / f"{number:04d}.png"), "caption": "x"}) for number in range(2000)]
    (tmp_path / "list.jsonl").write_text("\n".join(lines))
    config = tmp_path / "dataset.toml"
    config.write_text(f"[general]\nresolution = [64, 64]\n[[datasets]]\nimage_jsonl_file = '{tmp_path / 'list.jsonl'}'\n"
                      f"cache_directory = '{tmp_path}'\n")  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(repository / "backend")}
    command = [sys.executable, "-m", "musubi_backend", "inspect_dataset", "--dataset_config", str(config)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.read(1)  # the report is larger than a pipe, so that the tool waits in the middle of it
        process.send_signal(signal.SIGINT)
        _, printed = process.communicate()
    assert process.returncode == 130
    assert printed.splitlines()[-1] == "Interrupted." and "Traceback" not in printed
