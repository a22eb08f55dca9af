"""How the shipped templates look: numbered groups, a note, no node over another, links in the free, addresses of models."""

from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
TEMPLATES = sorted((ROOT / "workflows").glob("*.json"))
OWN_HOSTS = ("https://huggingface.co/Comfy-Org/", "https://huggingface.co/Kijai/")
WITHOUT_ADDRESS = ("demo_", "musubi_tuner/", "my_")


def graphs(path: Path) -> list[dict[str, Any]]:
    """The workflow, and what is folded in it, with links as lists."""
    data = json.loads(path.read_text(encoding="utf-8"))
    inside = (data.get("definitions") or {}).get("subgraphs") or []
    keys = ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")
    return [data, *({**graph, "links": [[link[key] for key in keys] for link in graph["links"]]} for graph in inside)]


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.stem)
def test_a_template_explains_itself(path: Path) -> None:
    data = graphs(path)
    (note,) = [node for node in data[0]["nodes"] if node["type"] == "MarkdownNote"]
    assert "## What it does" in note["widgets_values"][0]
    groups = [group["title"] for graph in data for group in graph["groups"]]
    assert groups == sorted(groups) and groups[0].startswith("1. ")
    assert data[0]["extra"]["ds"]["scale"] >= 0.65, "titles can be read where it opens"


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.stem)
def test_nodes_lie_in_one_group_each_and_not_over_each_other(path: Path) -> None:
    for graph in graphs(path):
        boxes = [(*node["pos"], *node["size"]) for node in graph["nodes"]]
        for (ax, ay, aw, ah), (bx, by, bw, bh) in combinations(boxes, 2):
            assert ax + aw <= bx or bx + bw <= ax or ay + ah <= by - 30 or by + bh <= ay - 30
        frames = [group["bounding"] for group in graph["groups"]]
        for node, (x, y, width, height) in zip(graph["nodes"], boxes, strict=True):
            around = [frame for frame in frames if frame[0] <= x and x + width <= frame[0] + frame[2]]
            assert node["type"] == "MarkdownNote" or not frames or len(around) == 1
            assert all(frame[1] <= y - 30 and y + height <= frame[1] + frame[3] for frame in around)


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.stem)
def test_links_run_from_left_to_right_and_past_the_nodes(path: Path) -> None:
    for graph in graphs(path):
        nodes = {node["id"]: node for node in graph["nodes"]}
        if "inputNode" in graph:  # what a subgraph is given comes from a box, too
            x, y, *size = graph["inputNode"]["bounding"]
            nodes[graph["inputNode"]["id"]] = {"pos": [x, y], "size": size}
        top = min(group["bounding"][1] for group in graph["groups"]) if graph["groups"] else 0
        places = {reroute["id"]: reroute for reroute in graph.get("reroutes", graph["extra"].get("reroutes", []))}
        routed = {number for place in places.values() for number in place["linkIds"]}
        assert all(place["pos"][1] < top for place in places.values()), "the lanes are above the groups"
        for number, origin, _, target, _, _ in graph["links"]:
            if origin in nodes and target in nodes:
                start, end = nodes[origin]["pos"][0] + nodes[origin]["size"][0], nodes[target]["pos"][0]
                between = [node for node in nodes.values() if start <= node["pos"][0] < end]
                assert start < end
                assert number in routed if between else number not in routed


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.stem)
def test_every_model_that_is_named_has_an_official_address(path: Path) -> None:
    for graph in graphs(path):
        for node in graph["nodes"]:
            known = {model["name"]: model for model in node["properties"].get("models", [])}
            values = [value for value in node.get("widgets_values", []) if str(value).endswith(".safetensors")]
            if node["type"].startswith("MusubiTuner_"):
                assert set(known) == {value for value in values if not value.startswith(WITHOUT_ADDRESS)}
            for name, model in known.items():
                assert model["url"].startswith(OWN_HOSTS) and model["url"].endswith(f"/{name}")
                assert model["directory"] in ("diffusion_models", "vae", "text_encoders", "clip_vision")
