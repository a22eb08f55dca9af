"""Adding an architecture takes one folder: `made_up/dots` is found, gets its tools, nodes, demo models and workflows, and is cached,
trained and generated with.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from musubi_backend.weights.safetensors_file import read_header

HERE = Path(__file__).parent / "made_up"
# In processes of its own, so that the rest of the tests do not know it
PROGRAM = f"""#!{sys.executable}
import sys
import musubi_backend.architectures as found
found.__path__.append({str(HERE)!r})
from musubi_backend.__main__ import main
sys.exit(main(sys.argv[3:]))  # after -m musubi_backend
"""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home folder whose interpreter knows the made-up families."""
    if os.name != "posix":
        pytest.skip("the interpreter is a script")
    program = tmp_path / "python"
    program.write_text(PROGRAM, encoding="utf-8")
    program.chmod(0o755)
    settings = {"interpreter": str(program), "engine": "builtin", "allowed_roots": []}
    (tmp_path / "config.json").write_text(json.dumps(settings), encoding="utf-8")
    return tmp_path


@pytest.mark.slow
def test_one_folder_brings_tools_nodes_demo_models_and_workflows_that_work(
    part: Any, home: Path, repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tools = subprocess.run([home / "python", "-m", "musubi_backend", "--help"], capture_output=True, text=True, check=True).stdout
    assert all(f"dots_{verb} " in tools for verb in ("cache_latents", "cache_text_encoder_outputs", "train_network", "generate_video"))
    workflows = part("workflows.contents").workflows(part("backend.musubi_backend.architectures"))
    specs = {name: node.spec for name, node in part("nodes.catalog").BY_NAME.items()}
    for name in ("dots_lora_training", "dots_generate_with_lora"):
        file = home / f"{name}.json"
        file.write_text(json.dumps(part("workflows.layout").build(workflows[name], specs)), encoding="utf-8")
        assert part("headless.run").run_file(file, [], [], home, demo=True) == 0, capsys.readouterr()
    caches = {path.name for path in (home / "datasets").rglob("*_dots*.safetensors")}
    assert any(name.endswith("_0064x0064_dots.safetensors") for name in caches) and any(
        name.endswith("_dots_te.safetensors") for name in caches
    )
    lora = read_header(home / "models" / "loras" / "musubi_tuner" / "my_dots.safetensors")
    assert "lora_unet_blocks_1_shrink.lora_up.weight" in lora.tensors and lora.metadata["ss_base_model_version"] == "dots"
    command = next((home / "jobs").glob("*dots_generate_video*")) / "command.json"
    assert "--lora_weight" in json.loads(command.read_text(encoding="utf-8"))["argv"]
    assert [path.suffix for path in (home / "output" / "musubi_tuner").iterdir()] == [".mp4"]
