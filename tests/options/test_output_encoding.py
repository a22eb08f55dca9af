"""Text that a terminal or a redirected file cannot hold (cp1252 on Windows, ascii on a bare server) stops no program."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

NAME = "映画 – ×"  # neither ascii nor cp1252 holds the first two characters


def _run(encoding: str, backend: Path, *words: str) -> subprocess.CompletedProcess[bytes]:
    environment = {**os.environ, "PYTHONPATH": str(backend), "PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"}
    return subprocess.run([sys.executable, *words], env=environment, capture_output=True)


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_help_of_every_tool_can_be_printed(encoding: str, repository: Path) -> None:
    code = (
        "import contextlib\nfrom musubi_backend.__main__ import main\nfrom musubi_backend.options.registry import tools\n"
        "main(['--help'])\n"
        "for name in tools():\n    with contextlib.suppress(SystemExit):\n        main([name, '--help'])\n"
        "    with contextlib.suppress(SystemExit):\n        main([name, '--\u5b66=1'])\n"
        "print(len(tools()), 'tools')"
    )
    done = _run(encoding, repository / "backend", "-c", code)
    assert done.returncode == 0, done.stderr.decode(encoding)
    assert b" tools" in done.stdout
    assert b"\\u5b66" in done.stderr


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
@pytest.mark.parametrize(
    "words",
    [
        ("convert_lora", "--input", f"{NAME}.safetensors", "--output", "out.safetensors", "--target", "other"),
        ("inspect_dataset", "--dataset_config", f"{NAME}.toml"),
        ("wan_cache_latents", "--dataset_config", f"{NAME}.toml", "--vae", f"{NAME}.safetensors"),
    ],
    ids=lambda words: words[0],
)
def test_names_of_files_can_be_printed(words: tuple[str, ...], encoding: str, repository: Path, tmp_path: Path) -> None:
    tool, *rest = words
    arguments = [str(tmp_path / word) if NAME in word or word.startswith("out.") else word for word in rest]
    done = _run(encoding, repository / "backend", "-m", "musubi_backend", tool, *arguments)
    shown = (done.stdout + done.stderr).decode(encoding)
    assert "Traceback" not in shown
    assert "\\u6620\\u753b" in shown


def test_a_name_that_is_no_text_can_be_printed(repository: Path, tmp_path: Path) -> None:
    """File names on Linux are bytes; Python hands those that are not UTF-8 out as lone surrogates."""
    done = _run("utf-8", repository / "backend", "-m", "musubi_backend", "inspect_dataset", "--dataset_config", os.fsdecode(b"\xff.toml"))
    assert b"Traceback" not in done.stderr
    assert b"\\udcff.toml" in done.stderr
