"""The check of the page's scripts says why it is skipped, and fails for a script that misuses ComfyUI's page."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from installer.checks import page_types

TYPES = Path(__file__).resolve().parents[1] / "web" / "types"


def test_without_node_it_is_skipped_with_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert page_types(TYPES) == ([], "as it needs node and npm")


def test_a_name_that_comfyuis_page_does_not_have_is_an_error(tmp_path: Path) -> None:
    if not (TYPES / "node_modules" / "installed-package-lock.json").is_file() or shutil.which("npm") is None:
        pytest.skip("needs the packages of tests/web/types, which install.py --test fetches")
    for name in ("comfyui.d.ts", "package-lock.json"):
        shutil.copy(TYPES / name, tmp_path)
    (tmp_path / "node_modules").symlink_to(TYPES / "node_modules", target_is_directory=True)
    settings = (TYPES / "tsconfig.json").read_text(encoding="utf-8").replace("../../../web/**/*.js", "script.js")
    (tmp_path / "tsconfig.json").write_text(settings, encoding="utf-8")
    (tmp_path / "script.js").write_text('import { app } from "../../scripts/app.js";\napp.loadGrahpData({});\n', encoding="utf-8")
    command, why_not = page_types(tmp_path)
    assert not why_not
    found = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert found.returncode != 0 and "Did you mean 'loadGraphData'" in found.stdout, found.stdout + found.stderr
