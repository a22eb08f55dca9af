"""Workflows are read in both formats, changed from the command line, and rejected with words when they do not fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def workflow(part: Any) -> Any:
    return part("headless.workflow")


def refused(part: Any, words: str) -> Any:
    return pytest.raises(part("backend.musubi_backend.errors").UserError, match=words)


def write(path: Path, value: Any) -> Path:
    path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
    return path


def test_ui_and_api_format_give_the_same_steps(workflow: Any, tmp_path: Path) -> None:
    ui = workflow.read(ROOT / "workflows" / "quickstart.json")
    api = {
        step.id: {
            "class_type": step.node.spec.id,
            "_meta": {"title": step.title},
            "inputs": {**step.constants, **{name: list(link) for name, link in step.links.items()}},
        }
        for step in ui.values()
    }
    again = workflow.read(write(tmp_path / "api.json", {"prompt": api}))
    assert len(ui) > 3 and again.keys() == ui.keys()
    for key, step in ui.items():
        other = again[key]
        assert (step.constants, step.links, step.title) == (other.constants, other.links, other.title)


def test_the_mode_after_a_seed_is_not_taken_for_a_value(workflow: Any) -> None:
    steps = workflow.read(ROOT / "workflows" / "quickstart.json")
    generator = next(step for step in steps.values() if step.node.spec.id.endswith("WanVideoGenerator"))
    assert generator.constants["seed"] == 7
    assert generator.constants["sample_solver"] == "unipc"
    assert "lora_1" in generator.links and "lora_1" not in generator.constants
    assert generator.constants["multiplier_1"] == 1.0


def test_widgets_change_from_the_command_line(workflow: Any) -> None:
    steps = workflow.read(ROOT / "workflows" / "quickstart.json")
    workflow.override(
        steps,
        [
            "LoRATrainingConfig.max_train_steps=5",
            "Dataset Config.path=/a b=c/猫",
            "MusubiTuner_VideoOutput.format=gif",
            "DatasetConfig.enable_bucket=true",
        ],
    )
    by_name = {step.node.spec.id.split("_", 1)[1]: step.constants for step in steps.values()}
    assert by_name["LoRATrainingConfig"]["max_train_steps"] == 5
    assert by_name["DatasetConfig"]["path"] == "/a b=c/猫"
    assert by_name["DatasetConfig"]["enable_bucket"] is True
    assert by_name["VideoOutput"]["format"] == "gif"


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("nothing", "write NODE.input=value"),
        ("Nobody.x=1", "no node is called"),
        ("VideoOutput.colour=1", "no widget 'colour'"),
        ("VideoOutput.video=1", "no widget 'video'"),
        ("=1", "write NODE"),
    ],
)
def test_bad_changes_are_rejected(workflow: Any, part: Any, setting: str, words: str) -> None:
    steps = workflow.read(ROOT / "workflows" / "quickstart.json")
    with refused(part, words):
        workflow.override(steps, [setting])


def test_a_name_of_two_nodes_is_rejected_and_an_id_tells_them_apart(workflow: Any, part: Any, tmp_path: Path) -> None:
    node = {"class_type": "MusubiTuner_DatasetConfig", "inputs": {"path": "x", "batch_size": 1, "enable_bucket": True}}
    steps = workflow.read(write(tmp_path / "x.json", {"1": node, "2": {**node, "_meta": {"title": "Second"}}}))
    with refused(part, "several nodes are called 'DatasetConfig'; there are 1 .Dataset Config., 2 .Second."):
        workflow.override(steps, ["DatasetConfig.path=y"])
    workflow.override(steps, ["2.batch_size=7", "Second.enable_bucket=False", "1.path=1", "1.source_fps=many", "Second.path=a=b.c"])
    assert (steps["2"].constants["batch_size"], steps["2"].constants["enable_bucket"]) == (7, False)
    assert (steps["1"].constants["path"], steps["1"].constants["source_fps"]) == ("1", "many"), "text stays text"
    assert steps["1"].constants["batch_size"] == 1


def test_files_that_are_no_workflows_are_rejected(workflow: Any, part: Any, tmp_path: Path) -> None:
    node = {"class_type": "MusubiTuner_VideoOutput", "inputs": {"video": ["9", 0]}}
    for value, words in (
        ("{", "a JSON object"),
        ("[]", "not a workflow"),
        ({"1": {"class_type": "KSampler", "inputs": {}}}, "KSampler"),
        ({"1": node}, "node 9, which is not there"),
        ({"1": {"inputs": {}}}, "not a workflow as ComfyUI writes it"),
    ):
        with refused(part, words):
            workflow.read(write(tmp_path / "x.json", value))
    with refused(part, "cannot read"):
        workflow.read(tmp_path / "missing.json")


def test_a_cycle_is_rejected(workflow: Any, part: Any, tmp_path: Path) -> None:
    node = "MusubiTuner_DatasetConfig"
    both = {"1": {"class_type": node, "inputs": {"previous": ["2", 0]}}, "2": {"class_type": node, "inputs": {"previous": ["1", 0]}}}
    with refused(part, "cycle"):
        workflow.order(workflow.read(write(tmp_path / "x.json", both)))


def test_notes_and_muted_nodes_are_left_out(workflow: Any, tmp_path: Path) -> None:
    data = json.loads((ROOT / "workflows" / "wan_generate_with_lora.json").read_text(encoding="utf-8"))
    data["nodes"].append({"id": 99, "type": "MarkdownNote", "widgets_values": ["words"]})
    data["nodes"].append({**data["nodes"][0], "id": 98, "mode": 2})
    assert set(workflow.read(write(tmp_path / "x.json", data))) == {"1", "2", "3"}
