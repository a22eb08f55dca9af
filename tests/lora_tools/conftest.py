"""Running the LoRA tools in this process, and comparing what they write."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from musubi_backend.__main__ import main

RunTool = Callable[..., None]


@pytest.fixture
def run_tool() -> RunTool:
    """`run_tool("convert_lora", "--input", path, ...)`; fails the test when the tool does."""

    def run(*words: object) -> None:
        assert main([str(word) for word in words]) == 0

    return run


@pytest.fixture
def refusal(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """As `run_tool` for a run that must be rejected: what it says."""

    def run(*words: object) -> str:
        capsys.readouterr()
        assert main([str(word) for word in words]) == 1
        return capsys.readouterr().err.split("ERROR: ")[-1]

    return run


def left_over(folder: Path) -> list[str]:
    """Temporary files in a folder."""
    return [path.name for path in folder.iterdir() if path.name.endswith(".part")]
