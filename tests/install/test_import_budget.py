"""Start-up stays light: no heavy library for help, for argument errors, or for loading the node pack.

Times are CPU seconds: on a machine with other work the clock measures that. On a quiet one they are the same.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from musubi_backend.options.registry import tools

HEAVY = ("torch", "diffusers", "transformers", "accelerate", "cv2", "av")
LORA_TOOLS = ("lora_post_hoc_ema", "convert_lora", "merge_lora")
TOOLS = (
    "wan_cache_latents",
    "wan_cache_text_encoder_outputs",
    "wan_train_network",
    "wan_generate_video",
    *LORA_TOOLS,
)

_TOOL = """
import json, sys, time
started = time.process_time()
from musubi_backend.__main__ import main
try:
    code = main(sys.argv[2:])
except SystemExit as stopped:
    code = stopped.code
heavy = [name for name in sys.argv[1].split(",") if name in sys.modules]
print(json.dumps({"seconds": time.process_time() - started, "heavy": heavy, "code": code}))
"""
_PACK = """
import importlib, importlib.util, json, sys, time
started = time.process_time()
spec = importlib.util.spec_from_file_location("pack", sys.argv[2] + "/__init__.py", submodule_search_locations=[sys.argv[2]])
module = importlib.util.module_from_spec(spec)
sys.modules["pack"] = module
spec.loader.exec_module(module)
nodes = importlib.import_module("pack.nodes.catalog").NODES
for node in nodes:
    assert node.spec.id
heavy = [name for name in sys.argv[1].split(",") if name in sys.modules]
print(json.dumps({"seconds": time.process_time() - started, "heavy": heavy, "nodes": len(nodes)}))
"""


def _best_of(count: int, code: str, *arguments: str, folder: Path) -> dict[str, object]:
    """The cheapest of several runs; `process` is what the whole process cost."""
    results = []
    for _ in range(count):
        before = os.times()
        command = [sys.executable, "-c", code, ",".join(HEAVY), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, cwd=folder, encoding="utf-8", check=False)
        assert done.returncode == 0, done.stderr
        after = os.times()
        process = after.children_user + after.children_system - before.children_user - before.children_system
        results.append({**json.loads(done.stdout.splitlines()[-1]), "process": process})
    return dict(min(results, key=lambda result: float(result["process"])))


@pytest.mark.parametrize("tool", TOOLS)
def test_help_of_a_tool_comes_at_once(repository: Path, tool: str) -> None:
    result = _best_of(4, _TOOL, tool, "--help", folder=repository / "backend")
    assert result["heavy"] == []
    assert float(str(result["process"])) < 0.5
    assert result["code"] in (0, None)


def test_help_of_no_tool_loads_anything_heavy(repository: Path) -> None:
    """All of them in one process; the times are taken above."""
    code = "import sys\nfor name in tools():\n    try:\n        main([name, '--help'])\n    except SystemExit:\n        pass\n"
    imports = "from musubi_backend.__main__ import main\nfrom musubi_backend.options.registry import tools\n"
    check = f"print([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", imports + code + check], capture_output=True, text=True, cwd=repository / "backend", check=True
    )
    assert done.stdout.count("usage:") >= len(tools())
    assert done.stdout.splitlines()[-1] == "[]"


def test_an_argument_error_comes_before_anything_heavy(repository: Path) -> None:
    result = _best_of(2, _TOOL, "wan_train_network", "--no_such_flag", folder=repository / "backend")
    assert result["heavy"] == []
    assert result["code"] not in (0, None)


def test_the_node_pack_loads_at_once_and_without_torch(repository: Path) -> None:
    result = _best_of(4, _PACK, str(repository), folder=repository.parent)
    assert result["heavy"] == []
    assert int(str(result["nodes"])) >= 12
    assert float(str(result["seconds"])) < 0.3
