"""In a real browser: the settings of the pack are read and saved in ComfyUI's Settings. Needs COMFYUI_PATH, Chromium and its driver."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from browser import Browser

from .test_comfyui import started

pytestmark = [pytest.mark.comfyui, pytest.mark.slow, pytest.mark.timeout(600)]


def test_folders_and_the_queue_are_set_in_the_settings(
    comfyui_path: Path,
    comfyui_python: Path,
    tmp_path: Path,
    browser: Browser,
) -> None:
    base = tmp_path / "base"
    base.mkdir()
    (tmp_path / "my clips").mkdir()
    with started(comfyui_path, comfyui_python, base, "musubi-tuner") as server:
        browser.open(server.url)
        browser.wait("window.app?.graph && window.app.extensionManager ? 1 : 0", 120)
        browser.run("await window.app.extensionManager.command.execute('Comfy.ShowSettingsDialog'); return 1;")
        leaves = "[...document.querySelectorAll('[role=dialog] *')].filter(one => !one.children.length)"
        row = f"{leaves}.find(one => one.textContent.trim() === 'MusubiTuner')"
        browser.wait(f"{row} ? 1 : 0")
        browser.run(f"{row}.click(); return 1;")
        box = "document.querySelector('.musubi-allowed-folders')"
        browser.wait(f"{box} ? 1 : 0")
        for folder, said in (("/", "whole of"), (str(tmp_path / "my clips"), "saved")):
            browser.run(f"{box}.value = args[0]; {box}.parentElement.querySelector('button').click(); return 1;", folder)
            browser.wait(f"{box}.parentElement.querySelector('[role=status]').textContent.includes('{said}') ? 1 : 0")
        field = "document.querySelector('.musubi-generation')"
        browser.wait(f"{field}?.value === 'wait' ? 1 : 0")
        browser.run(f"{field}.value = 'warn'; {field}.dispatchEvent(new Event('change'));")
        browser.wait(f"{field}.nextElementSibling.textContent === 'saved' ? 1 : 0")
        assert json.loads((server.home / "config.json").read_text())["queue"]["generation"] == "warn"
        assert json.loads((server.home / "config.json").read_text())["allowed_roots"] == [str(tmp_path / "my clips")]
