"""Workflows with subgraphs are read as if they were unfolded."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDED = json.loads((ROOT / "workflows" / "train_a_lora_start_here.json").read_text(encoding="utf-8"))


@pytest.fixture
def read(part: Any, tmp_path: Path) -> Any:
    def reading(data: dict[str, Any]) -> dict[str, Any]:
        file = tmp_path / "workflow.json"
        file.write_text(json.dumps(data), encoding="utf-8")
        steps = part("headless.workflow").read(file).values()
        return {step.node.spec.id.removeprefix("MusubiTuner_"): step for step in steps}

    return reading


def test_folded_and_plain_are_the_same_training(part: Any, read: Any) -> None:
    """But for what chooses the memory settings on the way to the trainer."""
    plain = read(json.loads((ROOT / "workflows" / "wan_lora_training.json").read_text(encoding="utf-8")))
    for name in ("_start_here", ".app"):
        folded = read(json.loads((ROOT / "workflows" / f"train_a_lora{name}.json").read_text(encoding="utf-8")))
        fitted = folded.pop("MemoryOptimizer")
        assert {socket: _type(folded, source) for socket, (source, _) in fitted.links.items()} == {
            "models": "WanModelPaths", "dataset": "DatasetConfig", "lora_config": "LoRATrainingConfig",
            "sampling": "SamplingConfig", "optimizer": "OptimizerConfig",
        }  # fmt: skip
        assert [*folded] == [*plain]
        for node, step in folded.items():
            assert step.constants == plain[node].constants
            before = {socket: fitted.links["lora_config"] if source == fitted.id else (source, slot)
                      for socket, (source, slot) in step.links.items()}  # fmt: skip
            origins = {socket: (_type(folded, source), slot) for socket, (source, slot) in before.items()}
            assert origins == {socket: (_type(plain, source), slot) for socket, (source, slot) in plain[node].links.items()}
    assert folded["WanLoRATrainer"].id.startswith("1:")


def _type(steps: dict[str, Any], number: str) -> str:
    return next(name for name, step in steps.items() if step.id == number)


def test_what_the_folded_node_says_counts_inside(read: Any) -> None:
    data = copy.deepcopy(FOLDED)
    names = [entry["name"] for entry in data["nodes"][0]["inputs"]]
    data["nodes"][0]["widgets_values"][names.index("path")] = "other clips"
    data["nodes"][0]["widgets_values"][names.index("max_train_steps")] = None
    steps = read(data)
    assert steps["DatasetConfig"].constants["path"] == "other clips"
    assert steps["LoRATrainingConfig"].constants["max_train_steps"] == 1600, "where it says nothing, the node inside does"


def test_what_is_outside_is_linked_through_both_ends(read: Any) -> None:
    data = copy.deepcopy(FOLDED)
    (host, note), definition = data["nodes"], data["definitions"]["subgraphs"][0]
    outside = {"id": 50, "type": "MusubiTuner_CaptionImages", "widgets_values": ["my_pictures", "x"], "inputs": []}
    path = next(entry for entry in host["inputs"] if entry["name"] == "path")
    path["link"], data["links"] = 1, [[1, 50, 1, 1, 0, "STRING"], [2, 1, 0, 51, 0, "*"]]
    lora = {"name": "lora", "type": "COMBO", "widget": {"name": "lora"}, "link": 2}
    converter = {"id": 51, "type": "MusubiTuner_LoRAFormatConverter", "widgets_values": [], "inputs": [lora]}
    data["nodes"] = [host, note, outside, converter]
    steps = read(data)
    assert steps["DatasetConfig"].links["path"] == ("50", 1)
    assert steps["LoRAFormatConverter"].links["lora"] == (steps["WanLoRATrainer"].id, 0)
    host["mode"] = 4
    definition["nodes"].clear()
    data["nodes"], data["links"] = [host, outside], []
    path["link"] = None
    assert [*read(data)] == ["CaptionImages"], "a bypassed one is left out with all that is in it"


def test_one_that_contains_itself_is_rejected(part: Any, read: Any) -> None:
    data = copy.deepcopy(FOLDED)
    definition = data["definitions"]["subgraphs"][0]
    definition["nodes"].append({"id": 99, "type": definition["id"]})
    with pytest.raises(part("backend.musubi_backend.errors").UserError, match="a subgraph contains itself"):
        read(data)
