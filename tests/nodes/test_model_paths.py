"""The pickers of model files: what they hand on, what they leave out for a task, and wrong files."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import Any

import pytest
from musubi_backend.demo.models import KINDS, write_models
from musubi_backend.weights.safetensors_file import load, read_header, save_atomic

NODES = {"wan": "WanModelPaths", "hv": "HunyuanVideoModelPaths", "fp": "FramePackModelPaths"}


@pytest.fixture(scope="module")
def host(part: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    home = tmp_path_factory.mktemp("models")
    for kind in ("wan", "wan_i2v", "wan22", "hv_i2v", "fp"):
        write_models(home / "demo" / "models", kind=kind)
    return part("headless.terminal").TerminalHost(home)


def picked(part: Any, host: Any, kind: str, **changes: Any) -> Any:
    """The MODELS value for the demo models of a kind."""
    node = part("nodes.catalog").BY_NAME[NODES[kind.split("_")[0].rstrip("2")]]()
    files = {name: demo.file for name, demo in KINDS[kind].items()}
    return asyncio.run(node.run(host, **part("nodes.checks").prepared(node, host, {**files, **changes}))).values[0]


def test_each_task_gets_the_files_it_uses(part: Any, host: Any) -> None:
    models = host.home / "demo" / "models"
    further = {"clip": "demo_clip_vision.safetensors", "dit_high_noise": "demo_wan_22_t2v_high.safetensors"}
    text = picked(part, host, "wan", task="t2v-1.3B", **further)
    assert set(text) == {"architecture", "task", "dit", "vae", "t5"}, "what the task does without is left out"
    image = picked(part, host, "wan_i2v", task="i2v-14B")
    assert image["clip"] == str(models / "demo_clip_vision.safetensors")
    experts = picked(part, host, "wan22", task="t2v-A14B")
    assert experts["dit_high_noise"] == str(models / "demo_wan_22_t2v_high.safetensors")
    assert "clip" not in experts
    assert picked(part, host, "wan22", task="t2v-A14B", dit_high_noise="none").get("dit_high_noise") is None


def test_what_tells_models_apart_goes_along(part: Any, host: Any) -> None:
    assert picked(part, host, "hv_i2v")["dit_in_channels"] == 32
    assert picked(part, host, "fp")["f1"] is False
    assert picked(part, host, "fp", variant="FramePack-F1")["f1"] is True


def split(folder: Path, model: Path) -> dict[str, Path]:
    """A model in three files with an index, as it is downloaded: part -> file."""
    tensors = load(model)
    names = [sorted(tensors)[number::3] for number in range(3)]
    parts = {f"part {number}": folder / f"wan-{number:05d}-of-00003.safetensors" for number in (1, 2, 3)}
    folder.mkdir(parents=True)
    for path, own in zip(parts.values(), names, strict=True):
        save_atomic({name: tensors[name] for name in own}, path, read_header(model).metadata)
    places = {name: path.name for path, own in zip(parts.values(), names, strict=True) for name in own}
    index = folder / "wan.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}), encoding="utf-8")
    return {**parts, "index": index}


def test_a_split_model_is_offered_as_its_index_and_known_by_all_its_parts(part: Any, host: Any, tmp_path: Path) -> None:
    files = split(tmp_path / "models" / "diffusion_models" / "wan", host.home / "demo" / "models" / KINDS["wan"]["dit"].file)
    (files["index"].with_name("notes.json")).write_text("{}", encoding="utf-8")
    (files["index"].with_name("other-00001-of-00002.safetensors")).write_bytes(b"")
    here = part("headless.terminal").TerminalHost(tmp_path, [host.home / "demo" / "models"])
    listed = [name for name in here.model_names("diffusion_models") if name.startswith("wan/")]
    assert "wan/wan.safetensors.index.json" in listed and len(listed) == 5, "three parts, the index, and a part without one"
    node = part("nodes.catalog").BY_NAME["WanModelPaths"]()
    chosen = {**{name: demo.file for name, demo in KINDS["wan"].items()}, "dit": "wan/wan.safetensors.index.json"}
    assert part("nodes.checks").check(node, here, {**chosen, "task": "t2v-1.3B"}) == []
    value = picked(part, here, "wan", task="t2v-1.3B", dit=chosen["dit"])
    assert value["dit"] == str(files["part 1"]), "musubi-tuner's scripts know no index"
    before = node.fingerprint(here, **chosen, task="t2v-1.3B")
    os.utime(files["part 2"], ns=(1, 1))
    assert node.fingerprint(here, **chosen, task="t2v-1.3B") != before


def test_a_transformer_of_another_family_is_rejected_when_it_is_queued(part: Any, host: Any) -> None:
    for name, wrong, words in (
        ("HunyuanVideoModelPaths", "demo_framepack.safetensors", "dit expects a HunyuanVideo transformer"),
        ("FramePackModelPaths", "demo_wan_t2v.safetensors", "dit expects a FramePack transformer"),
    ):
        (problem,) = part("nodes.checks").check(part("nodes.catalog").BY_NAME[name](), host, {"dit": wrong})
        assert problem.input == "dit" and problem.text.endswith(words)


def test_a_missing_or_wrong_file_is_named(part: Any, host: Any) -> None:
    error = part("backend.musubi_backend.errors").UserError
    with pytest.raises(error, match="CLIP image encoder"):
        picked(part, host, "wan_i2v", task="i2v-14B", clip="none")
    with pytest.raises(error, match="FramePack transformer; dit expects a HunyuanVideo transformer"):
        picked(part, host, "hv_i2v", dit="demo_framepack.safetensors")
    with pytest.raises(error, match="CLIP-L text encoder; text_encoder1 expects"):
        picked(part, host, "fp", text_encoder1="demo_clip_l.safetensors")
    with pytest.raises(error, match=r"not there|is not in"):
        picked(part, host, "fp", vae="gone.safetensors")


def test_a_value_without_a_needed_file_says_where_to_choose_it(part: Any, tmp_path: Path) -> None:
    with pytest.raises(part("backend.musubi_backend.errors").UserError, match="caching captions needs t5: choose it in Wan Model Paths"):
        part("nodes.models").files_for({"architecture": "wan", "vae": "v"}, ("t5",), "caching captions")
