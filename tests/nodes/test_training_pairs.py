"""What the training nodes pass: no useless pairs by default or in a template, and nothing that names a class or module to import."""

from __future__ import annotations

import asyncio
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
TRAININGS = sorted(path.stem for path in (ROOT / "workflows").glob("*_lora_training.json"))
SETTINGS = ("LoRATrainingConfig", "OptimizerConfig", "SamplingConfig")
TOOL = "wan_train_network"


def passed(part: Any, home: Path, given: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The settings that the three nodes hand to a trainer, with these widget values."""
    made: dict[str, Any] = {}
    for name in SETTINGS:
        node = part("nodes.catalog").BY_NAME[name]()
        without_images = {key: value for key, value in given.get(name, {}).items() if not key.endswith(("_path", "_paths"))}
        inputs = part("nodes.checks").complete(node.spec, without_images)
        (value,) = asyncio.run(node.run(Namespace(home=home), **inputs)).values
        if name == "SamplingConfig":
            made |= {**value["settings"], **({"sample_prompts": "prompts.json"} if value["prompts"] else {})}
        else:
            made |= value
    return made


def reported(part: Any, values: dict[str, Any]) -> list[str]:
    backend = "backend.musubi_backend.options"
    target = part(f"{backend}.registry").tool(TOOL)
    defaults = {option.name: part(f"{backend}.values").default_of(option) for option in target.options}
    return [sentence for _, sentence in part(f"{backend}.needs").unmet(target, Namespace(**{**defaults, **values}))]


def test_the_defaults_of_the_nodes_hold_no_useless_pair(part: Any, tmp_path: Path) -> None:
    assert reported(part, passed(part, tmp_path, {})) == []


@pytest.mark.parametrize("name", TRAININGS)
def test_no_template_holds_a_useless_pair(part: Any, tmp_path: Path, name: str) -> None:
    steps = part("headless.workflow").read(ROOT / "workflows" / f"{name}.json").values()
    given = {kind: step.constants for step in steps for kind in SETTINGS if step.node.spec.id.endswith(f"_{kind}")}
    assert set(given) >= {"LoRATrainingConfig", "OptimizerConfig"}
    assert reported(part, passed(part, tmp_path, given)) == []


@pytest.mark.parametrize(
    ("name", "widget", "value"),
    [
        ("OptimizerConfig", "optimizer_type", "os.system"),
        ("OptimizerConfig", "optimizer_type", "some_package.Optimizer"),
        ("OptimizerConfig", "lr_scheduler", "some_package.Schedule"),
        ("OptimizerConfig", "optimizer_args", "x=__import__('os')\nimport os"),
        ("LoRATrainingConfig", "network", "some_package.network"),
    ],
)
def test_no_widget_names_what_is_imported(part: Any, tmp_path: Path, name: str, widget: str, value: str) -> None:
    """On a terminal a class path is fine; a workflow comes from anywhere."""
    node = part("nodes.catalog").BY_NAME[name]()
    host = Namespace(home=tmp_path, allowed_roots=lambda: [tmp_path])
    try:
        problems = part("nodes.checks").check(node, host, {widget: value})
    except part("backend.musubi_backend.errors").UserError as error:
        problems = [error]
    assert problems


def test_no_node_offers_a_setting_that_imports(part: Any) -> None:
    free = {"lr_scheduler_type", "lr_scheduler_args", "config_file", "network_module", "network_args"}
    for node in part("nodes.catalog").NODES:
        for one in node.spec.inputs:
            assert one.option not in free, (node.spec.id, one.name)
            assert one.option not in ("optimizer_type", "lr_scheduler") or one.kind == "COMBO", (node.spec.id, one.name)
