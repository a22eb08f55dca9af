"""Caption Images: what is rejected when a prompt is queued and when it runs, and what the tool is asked for."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from musubi_backend.options.parser import parse
from safetensors.numpy import save_file

MODEL = "vl.safetensors"


class PaperHost:
    """A host with one model file."""

    def __init__(self, root: Path) -> None:
        self.home = self.output_dir = self.temp_dir = root / "home"
        self.input_dir = root / "input"
        for folder in (self.home, self.input_dir / "images"):
            folder.mkdir(parents=True)
        (root / "elsewhere").mkdir()
        (self.input_dir / "one.png").write_bytes(b"")
        self.model = root / "home" / MODEL

    def allowed_roots(self) -> list[Path]:
        return [self.home, self.input_dir]

    def model_names(self, key: str) -> list[str]:
        return [MODEL] if key == "text_encoders" else []

    def model_path(self, key: str, name: str) -> Path:
        return self.model


@pytest.fixture
def host(tmp_path: Path) -> PaperHost:
    return PaperHost(tmp_path)


@pytest.fixture
def node(part: Any) -> Any:
    return part("nodes.caption").CaptionImages()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"path": "../elsewhere"}, "outside the folders"),
        ({"path": ""}, "path is empty"),
        ({"path": "nothing"}, "does not exist"),
        ({"path": "one.png"}, "is not a folder"),
        ({"file_name": "../captions.jsonl"}, "file_name"),
        ({"file_name": "captions.txt"}, "must end in .jsonl"),
        ({"max_size": 20}, "below the minimum"),
        ({"output_format": "xml"}, "is not there"),
        ({"model": "other.safetensors"}, "is not there"),
    ],
)
def test_wrong_widgets_are_rejected_when_queued(changes: dict[str, Any], message: str, host: PaperHost, node: Any, part: Any) -> None:
    checks = part("nodes.checks")
    values = checks.complete(node.spec, {"path": "images", "model": MODEL})
    assert checks.check(node, host, values) == []
    assert message in str(checks.check(node, host, {**values, **changes}))


def test_another_model_is_recognised_and_rejected_before_anything_starts(host: PaperHost, node: Any, part: Any) -> None:
    import numpy as np

    save_file({"shared.weight": np.ones(2), "encoder.block.0.layer.0.SelfAttention.q.weight": np.ones(2)}, host.model)
    values = part("nodes.checks").prepared(node, host, {"path": "images", "model": MODEL})
    with pytest.raises(part("backend.musubi_backend.errors").UserError, match=r"is a T5 text encoder; model expects a Qwen2\.5-VL"):
        asyncio.run(node.run(host, **values))
    assert not (host.home / "jobs").exists()


def test_the_tool_is_asked_for_what_the_widgets_say(
    host: PaperHost, node: Any, part: Any, shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command line, caught where a process would start, parses in our parser to the widgets' values; with the widgets as they come
    it has no flag that musubi-tuner does not have."""
    import numpy as np

    host.model.parent.mkdir(exist_ok=True)
    names = ("visual.blocks.0.attn.qkv.weight", "model.layers.0.self_attn.q_proj.weight")
    save_file({name: np.ones(2) for name in names}, host.model)
    asked: list[list[str]] = []

    class Caught(Exception):
        pass

    async def run_tool(host: Any, tool: str, arguments: list[str], **options: Any) -> None:
        asked.append([tool, *arguments])
        raise Caught

    monkeypatch.setattr(part("nodes.caption"), "run_tool", run_tool)
    for changes in ({}, {"output_format": "jsonl", "prompt": "Say\n--what 'is' there", "fp8_vl": True, "batch_size": 3, "overwrite": True}):
        values = part("nodes.checks").prepared(node, host, {"path": "images", "model": MODEL, **changes})
        with pytest.raises(Caught):
            asyncio.run(node.run(host, **values))
    contract = json.loads((shared / "contracts" / "musubi_cli.json").read_text(encoding="utf-8"))["scripts"]
    theirs = {string for flag in contract["caption_images_by_qwen_vl"]["flags"] for string in flag["option_strings"]}
    assert {word.split("=")[0] for word in asked[0][1:] if word.startswith("--")} <= theirs
    plain, full = (parse(tool, arguments) for tool, *arguments in asked)
    assert (plain.image_dir, plain.model_path, plain.output_format) == (str(host.input_dir / "images"), str(host.model), "text")
    assert plain.prompt is None and plain.output_file is None and not plain.overwrite, "defaults are left to the tool"
    assert full.output_file == str(host.input_dir / "images" / "captions.jsonl")
    assert (full.prompt, full.fp8_vl, full.batch_size, full.overwrite) == ("Say\n--what 'is' there", True, 3, True)
