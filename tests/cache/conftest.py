"""Models and dataset files for running the caching verbs as a user does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

Toml = Callable[..., Path]


@pytest.fixture(scope="session")
def demo_models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    from musubi_backend.demo.models import write_models

    return write_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="session")
def dataset_toml() -> Toml:
    """Writes a dataset file with one dataset; values are TOML literals."""

    def write(path: Path, kind: str, folder: Path, cache: Path, **values: object) -> Path:
        lines = ["[general]", 'caption_extension = ".txt"', "[[datasets]]"]
        lines += [f"{kind}_directory = {_text(folder)}", f"cache_directory = {_text(cache)}"]
        lines += [f"{key} = {value}" for key, value in values.items()]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return path

    return write


def _text(path: Path) -> str:
    return '"' + str(path).replace("\\", "\\\\").replace('"', '\\"') + '"'
