"""A home folder with demo models and clips, ready to run workflows."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "backend")}


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Demo models and clips, made once."""
    folder = tmp_path_factory.mktemp("demo")
    board = ("--subject", "chessboard", "--clips", "1")
    for tool, name, *flags in (("demo_models", "models"), ("demo_dataset", "dataset"), ("demo_dataset", "quickstart", *board)):
        command = [sys.executable, "-m", "musubi_backend", tool, "--output", str(folder / name), *flags]
        subprocess.run(command, check=True, capture_output=True, env=ENVIRONMENT)
    return folder


@pytest.fixture
def home(tmp_path: Path, demo: Path) -> Path:
    """A home folder with a space and Japanese in its name, ready to run the quickstart."""
    home = tmp_path / "our ホーム"
    home.mkdir()
    (home / "config.json").write_text(
        json.dumps({"interpreter": sys.executable, "engine": "builtin", "allowed_roots": []}), encoding="utf-8"
    )
    shutil.copytree(demo, home / "demo")
    return home
