"""The page's script that offers new files in open lists, run by node against the page's events."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
_PAGE = """
import { extensions, app, api, refreshed } from "./scripts/app.js";
await import("./extensions/pack/refresh_lists.js");
for (const extension of extensions) extension.setup();
const said = {};
for (const type of JSON.parse(process.argv[2])) {
  app.node = { type };
  const before = refreshed.count;
  api.send("execution_start", {});
  api.send("executing", "1");
  api.send("executing", null);
  api.send("execution_success", {});
  said[type] = refreshed.count - before;
}
console.log(JSON.stringify(said));
"""
_APP = """
export const extensions = [];
export const refreshed = { count: 0 };
export const app = {
  graph: { getNodeById: () => app.node },
  refreshComboInNodes: () => { refreshed.count += 1; },
  registerExtension: (extension) => extensions.push(extension),
};
const listeners = [];
export const api = {
  addEventListener: (name, act) => listeners.push([name, act]),
  send: (name, detail) => listeners.filter(([known]) => known === name).forEach(([, act]) => act({ detail })),
};
"""


def test_lists_are_read_again_after_nodes_that_write_loras_and_no_others(part: Any, tmp_path: Path) -> None:
    node = shutil.which("node")
    if node is None:
        pytest.skip("needs node to run the page's scripts")
    (tmp_path / "extensions" / "pack").mkdir(parents=True)
    (tmp_path / "scripts").mkdir()
    shutil.copy(ROOT / "web" / "refresh_lists.js", tmp_path / "extensions" / "pack")
    (tmp_path / "package.json").write_text('{"type": "module"}')
    (tmp_path / "scripts" / "app.js").write_text(_APP)
    (tmp_path / "scripts" / "api.js").write_text('export { api } from "./app.js";\n')
    (tmp_path / "page.mjs").write_text(_PAGE)
    types = [one.spec.id for one in part("nodes.catalog").NODES]
    command = [node, "page.mjs", json.dumps([*types, "KSampler"])]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60)
    assert result.returncode == 0, result.stderr
    writers = {name for name, times in json.loads(result.stdout).items() if times}
    assert writers == {name for name in types if re.search(r"LoRATrainer$|_LoRA(PostHocEMA|FormatConverter|Merger|Extractor)$", name)}
    assert len(writers) >= 7
