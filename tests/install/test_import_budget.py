"""Start-up stays light: no heavy library for help, for argument errors, or for loading the node pack.

Counted are imported modules, which decide how long a start takes and are the same on every machine; seconds are not.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from musubi_backend.options.registry import tools

HEAVY = ("torch", "numpy", "transformers", "diffusers", "accelerate", "safetensors", "av", "cv2", "PIL", "tqdm", "aiohttp", "asyncio")
TOOLS = (
    "wan_cache_latents",
    "wan_cache_text_encoder_outputs",
    "wan_train_network",
    "wan_generate_video",
    "lora_post_hoc_ema",
    "convert_lora",
    "merge_lora",
)
OURS = "musubi_backend", "pack"
FOREIGN_OF_HELP, FOREIGN_OF_PACK = 90, 250
"""How many modules of the standard library help and the node pack may bring (asyncio alone is about 70 of the pack's)."""

_REPORT = """
after = set(sys.modules) - before
print(json.dumps({"code": code, "heavy": [name for name in sys.argv[1].split(",") if name in after],
                  "foreign": len([name for name in after if name.partition(".")[0] not in sys.argv[2].split(",")])}))
"""
_TOOL = f"""
import json, sys
before = set(sys.modules)
from musubi_backend.__main__ import main
try:
    code = main(sys.argv[3:])
except SystemExit as stopped:
    code = stopped.code
{_REPORT}"""
_PACK = f"""
import importlib, importlib.util, json, sys
before = set(sys.modules)
spec = importlib.util.spec_from_file_location("pack", sys.argv[3] + "/__init__.py", submodule_search_locations=[sys.argv[3]])
module = importlib.util.module_from_spec(spec)
sys.modules["pack"] = module
spec.loader.exec_module(module)
code = len([node.spec.id for node in importlib.import_module("pack.nodes.catalog").NODES])
{_REPORT}"""


def _imported(code: str, *arguments: str, folder: Path, heavy: tuple[str, ...] = HEAVY) -> dict[str, Any]:
    command = [sys.executable, "-c", code, ",".join(heavy), ",".join(OURS), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, encoding="utf-8", check=False)
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return report


@pytest.mark.parametrize("tool", TOOLS)
def test_help_of_a_tool_comes_at_once(repository: Path, tool: str) -> None:
    found = _imported(_TOOL, tool, "--help", folder=repository / "backend")
    assert found["heavy"] == [] and found["code"] in (0, None)
    assert found["foreign"] <= FOREIGN_OF_HELP


def test_help_of_no_tool_loads_anything_heavy(repository: Path) -> None:
    """All of them in one process."""
    code = "import sys\nfor name in tools():\n    try:\n        main([name, '--help'])\n    except SystemExit:\n        pass\n"
    imports = "from musubi_backend.__main__ import main\nfrom musubi_backend.options.registry import tools\n"
    check = f"print([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", imports + code + check], capture_output=True, text=True, cwd=repository / "backend", check=True
    )
    assert done.stdout.count("usage:") >= len(tools())
    assert done.stdout.splitlines()[-1] == "[]"


def test_an_argument_error_comes_before_anything_heavy(repository: Path) -> None:
    for mistake in (["--no_such_flag"], ["--lerning_rate", "1"], ["--sdpa"]):
        found = _imported(_TOOL, "wan_train_network", *mistake, folder=repository / "backend")
        assert found["heavy"] == [], mistake
        assert found["code"] not in (0, None), mistake


def test_the_node_pack_loads_at_once_and_without_torch(repository: Path) -> None:
    """asyncio is there in ComfyUI anyway."""
    found = _imported(_PACK, str(repository), folder=repository.parent, heavy=HEAVY[:-1])
    assert found["heavy"] == []
    assert found["code"] >= 12
    assert found["foreign"] <= FOREIGN_OF_PACK
