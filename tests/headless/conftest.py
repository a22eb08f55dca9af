"""A home folder with demo models and clips, ready to run workflows."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
from musubi_backend.demo.clips import write_clips
from musubi_backend.demo.models import write_models


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Demo models and clips, made once."""
    folder = tmp_path_factory.mktemp("demo")
    write_models(folder / "models")
    write_clips(folder / "dataset")
    write_clips(folder / "quickstart", count=1, subject="chessboard")
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
