"""What CONTRIBUTING promises: a setting, a node or an optimizer is added in the one file it names, and everything else follows.

Each is written into a copy of the pack. An architecture is a folder: `tests/architectures`.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

Pack = Callable[[str], Any]

NODE = """

class Echo(Node):
    spec = NodeSpec(
        id="MusubiTuner_Echo",
        display_name="Echo",
        category="MusubiTuner/System",
        description="Says what it is reported.",
        inputs=(Input("words", "STRING", "What to say.", default="hello"),),
        outputs=(Output("words", "STRING", "What was said"),),
    )

    async def run(self, host: Host, **inputs: Any) -> Result:
        return Result((inputs["words"].upper(),))
"""
SETTING = """Option("--echo_every", int, 3, minimum=1, unit="steps", own=True, effect=NOTHING, help="Say hello every N steps."),
            """
ENTRY = """Entry(
        "Echo", "Plain", "torch.optim:SGD", "Goes the way it came.", "nowhere", 0, aliases=("echoing",), fixed={"momentum": 0.5},
        arguments=(flag("nesterov", False, "Look ahead."),),
    ),
    """


@pytest.fixture
def changed(repository: Path, tmp_path: Path) -> Iterator[Callable[[str, Callable[[str], str]], Pack]]:
    """A function: a copy of the pack with one file changed, as `part` gives the pack. CONTRIBUTING must name the file or its folder."""
    name = f"pack_of_{tmp_path.name}"

    def pack(file: str, change: Callable[[str], str]) -> Pack:
        words = (repository / "CONTRIBUTING.md").read_text(encoding="utf-8")
        assert f"`{file}`" in words or f"`{Path(file).parent.as_posix()}/`" in words
        copy = tmp_path / "pack"
        for folder in ("locales", "backend/musubi_backend", "nodes", "headless", "installer"):
            shutil.copytree(repository / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(repository / "__init__.py", copy)
        before = (copy / file).read_text(encoding="utf-8")
        (copy / file).write_text(change(before), encoding="utf-8")
        spec = importlib.util.spec_from_file_location(name, copy / "__init__.py", submodule_search_locations=[str(copy)])
        assert spec and spec.loader
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
        return lambda module: importlib.import_module(f"{name}.{module}")

    yield pack
    for module in [one for one in sys.modules if one == name or one.startswith(f"{name}.")]:
        del sys.modules[module]


def test_a_setting_is_a_row(changed: Any, tmp_path: Path) -> None:
    first = "Option(\n"
    pack = changed("backend/musubi_backend/options/tables/saving.py", lambda text: text.replace(first, SETTING + first, 1))
    options = "backend.musubi_backend.options"
    trainer, error = pack(f"{options}.registry").tool("wan_train_network"), pack("backend.musubi_backend.errors").UserError
    read = pack(f"{options}.parser").read
    settings = tmp_path / "settings.toml"
    settings.write_text("[saving]\necho_every = 7\n", encoding="utf-8")
    given = [[], ["--echo_every", "5"], ["--config_file", str(settings)]]
    assert [read(trainer, words).echo_every for words in given] == [3, 5, 7]
    with pytest.raises(error, match="--echo_every"):
        read(trainer, ["--echo_every", "0"])
    row = "| `--echo_every` | int, at least 1, steps | 3 | yes; musubi-tuner has no such flag | Say hello every N steps. |"
    assert pack(f"{options}.document").page().count(row) == len(pack("backend.musubi_backend.architectures").cards())
    widget = pack("nodes.families").shared_widget("train", "echo_every")
    assert (widget.kind, widget.default, widget.minimum, widget.tooltip) == ("INT", 3, 1, "Say hello every N steps.")
    assert pack(f"{options}.argv").to_argv("wan_train_network", {"echo_every": 9}) == ["--echo_every", "9"]
    assert not hasattr(read(pack(f"{options}.registry").tool("wan_generate_video"), []), "echo_every"), "the group is a trainer's"


def test_a_node_is_a_class(changed: Any, tmp_path: Path, repository: Path) -> None:
    pack = changed("nodes/system.py", lambda text: text + NODE)
    assert "Echo" in pack("nodes.catalog").BY_NAME
    texts = pack("nodes.help_pages").texts(
        [node.spec for node in pack("nodes.catalog").NODES], pack("nodes.optimizer_settings").for_the_page()
    )
    pages = {path.relative_to(tmp_path / "pack").as_posix(): text for path, text in texts.items()}
    assert "| `words` | hello | What to say. |" in pages["web/docs/MusubiTuner_Echo.md"]
    assert json.loads(pages["locales/en/nodeDefs.json"])["MusubiTuner_Echo"]["outputs"]["0"]["name"] == "words"
    workflow = tmp_path / "workflow.json"
    workflow.write_text(json.dumps({"1": {"class_type": "MusubiTuner_Echo", "inputs": {"words": "good day"}}}), encoding="utf-8")
    (step,) = pack("headless.workflow").read(workflow).values()
    assert step.constants == {"words": "good day"} and step.node.spec.display_name == "Echo"


def test_an_optimizer_is_an_entry(changed: Any) -> None:
    first = "Entry(\n"
    pack = changed("backend/musubi_backend/optimizers/table/usual.py", lambda text: text.replace(first, ENTRY + first, 1))
    training, error = "backend.musubi_backend.training", pack("backend.musubi_backend.errors").UserError
    settings = pack(f"{training}.settings").OptimizerSettings
    weight = torch.nn.Parameter(torch.zeros(2))
    for name in ("Echo", "ECHOING"):
        chosen = settings(optimizer_type=name, optimizer_args=("nesterov=True",))
        made = pack(f"{training}.optimizers").build(chosen, 0.25, [{"params": [weight]}])
        assert isinstance(made.optimizer, torch.optim.SGD)
        (group,) = made.optimizer.param_groups
        assert (group["lr"], group["momentum"], group["nesterov"]) == (0.25, 0.5, True)
    with pytest.raises(error, match=r"Plain: .*Echo"):
        pack(f"{training}.optimizers").check(settings(optimizer_type="Ehco"))
