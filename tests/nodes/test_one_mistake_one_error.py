"""In a real ComfyUI: every mistake is one error, on the widget that is wrong. Needs COMFYUI_PATH."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from musubi_backend.demo.models import write_models

from .test_comfyui import Server, started

pytestmark = [pytest.mark.comfyui, pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def server(comfyui_path: Path, comfyui_python: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    base = tmp_path_factory.mktemp("comfy base")
    with started(comfyui_path, comfyui_python, base, "pack") as made:
        (base / "input" / "clips").mkdir(parents=True)
        (base / "input" / "file.txt").write_text("no folder")
        yield made


async def answer(server: Server, prompt: dict[str, Any]) -> dict[str, Any]:
    import aiohttp

    async with aiohttp.ClientSession() as http, http.post(f"{server.url}/prompt", json={"prompt": prompt}) as said:
        return dict(await said.json())


class Pack:
    """Builds prompts of single nodes whose widgets are right, with every socket fed by a node of its own."""

    def __init__(self, server: Server, part: Any) -> None:
        self.info = asyncio.run(server.get("/object_info"))
        self.nodes = {node.spec.id: node for node in part("nodes.catalog").NODES}
        self.makers = {
            output.kind: node.spec
            for node in self.nodes.values()
            for output in reversed(node.spec.outputs)
            if output.kind not in {entry.kind for entry in node.spec.inputs if not entry.optional}  # what changes one makes none
        }

    def prompt(self, node: str, **changes: Any) -> dict[str, Any]:
        """A prompt whose node "1" is `node`, followed by an output node."""
        made: dict[str, Any] = {}
        self._add(made, f"MusubiTuner_{node}", "1")
        made["1"]["inputs"] |= changes
        made["show"] = {"class_type": "PreviewAny", "inputs": {"source": ["1", 0]}}
        return made

    def _add(self, made: dict[str, Any], kind: str, key: str) -> None:
        made[key] = {"class_type": kind, "inputs": {}}
        known = self.info[kind]["input"]
        for entry in self.nodes[kind].spec.inputs:
            if entry.is_widget:
                described = {**known.get("required", {}), **known.get("optional", {})}[entry.name]
                options = described[1].get("options") or (described[0] if isinstance(described[0], list) else [None])
                made[key]["inputs"][entry.name] = RIGHT.get(entry.name, described[1].get("default", options[0]))
            elif not entry.optional:
                self._feed(made, entry, key)

    def _feed(self, made: dict[str, Any], entry: Any, key: str) -> None:
        source = f"{key}.{entry.name}"
        if entry.kind == "VIDEO":
            made[source] = {"class_type": "LoadVideo", "inputs": {"file": "clip.mp4"}}
            made[key]["inputs"][entry.name] = [source, 0]
            return
        maker = self.makers[entry.kind]
        self._add(made, maker.id, source)
        made[key]["inputs"][entry.name] = [source, [output.kind for output in maker.outputs].index(entry.kind)]


RIGHT = {
    "path": "clips",
    "prompt": "a dog",
    "file": "none",
    "clip": "demo_clip_vision.safetensors",
    "dit": "demo_wan_t2v.safetensors",
    "lora": "right.safetensors",
}


@pytest.fixture(scope="module")
def pack(server: Server, part: Any) -> Pack:
    base = server.home.parent
    clip = next((server.home / "demo" / "dataset").glob("*.mp4"))
    (base / "input" / "clip.mp4").write_bytes(clip.read_bytes())
    for folder in ("loras", "diffusion_models"):
        (base / "models" / folder).mkdir(parents=True, exist_ok=True)
        (base / "models" / folder / "right.safetensors").write_bytes(b"")
    for kind in ("hv", "fp"):
        write_models(server.home / "demo" / "models", kind=kind)
    return Pack(server, part)


WRONG: tuple[tuple[str, dict[str, Any], str], ...] = (
    ("DatasetConfig", {"path": "/etc"}, "path"),
    ("DatasetConfig", {"path": "no such folder"}, "path"),
    ("DatasetConfig", {"path": "file.txt"}, "path"),
    ("DatasetConfig", {"source": "clips"}, "source"),
    ("DatasetConfig", {"width": 100}, "width"),
    ("DatasetConfig", {"width": "wide"}, "width"),
    ("DatasetConfig", {"height": 8192}, "height"),
    ("DatasetConfig", {"target_frames": "many"}, "target_frames"),
    ("DatasetConfig", {"one_frame_control_indices": "first"}, "one_frame_control_indices"),
    ("DatasetConfig", {"control_directory": "nowhere"}, "control_directory"),
    ("DatasetConfig", {"cache_directory": "/etc/caches"}, "cache_directory"),
    ("DatasetConfigLoader", {"path": "file.txt"}, "path"),
    ("DatasetConfigLoader", {"path": ""}, "path"),
    ("DatasetViewer", {"page": 0}, "page"),
    ("DatasetConfig", {"one_frame_no_post": True}, "one_frame_no_post"),
    ("CaptionImages", {"path": "file.txt"}, "path"),
    ("CaptionImages", {"file_name": "../up.jsonl"}, "file_name"),
    ("VAELatentCache", {"num_workers": -3}, "num_workers"),
    ("TextEncoderCache", {"device": "abacus"}, "device"),
    ("WanModelPaths", {"dit": "gone.safetensors"}, "dit"),
    ("WanModelPaths", {"vae": "../../etc/passwd"}, "vae"),
    ("WanModelPaths", {"task": "i2v-14B", "dit": "demo_wan_i2v.safetensors", "clip": "none"}, "clip"),
    ("HunyuanVideoModelPaths", {"dit": "demo_hunyuan_video_t2v.safetensors", "text_encoder1": "gone.safetensors"}, "text_encoder1"),
    ("FramePackModelPaths", {"dit": "demo_framepack.safetensors", "image_encoder": "gone.safetensors"}, "image_encoder"),
    ("LoRATrainingConfig", {"fp8_scaled": True, "fp8_base": False}, "fp8_scaled"),
    ("LoRATrainingConfig", {"network": "LoHa", "network_dropout": 0.1}, "network_dropout"),
    ("LoRATrainingConfig", {"network_dim": -5}, "network_dim"),
    ("LoRATrainingConfig", {"training_comment": "half \ud800"}, "training_comment"),
    ("OptimizerConfig", {"optimizer_args": "no equals sign"}, "optimizer_args"),
    ("OptimizerConfig", {"optimizer_args": "betas=(2, 3)"}, "optimizer_args"),
    ("OptimizerConfig", {"optimizer_args": "momentun=0.5"}, "optimizer_args"),
    ("OptimizerConfig", {"optimizer_type": "adamw", "optimizer_preset": "HinaAdamW: SD"}, "optimizer_preset"),
    ("ExpertSettings", {"exclude_patterns": "("}, "exclude_patterns"),
    ("TrainingMonitor", {"smoothing": 2.0}, "smoothing"),
    ("TensorBoard", {"action": "break"}, "action"),
    ("ResourceMonitor", {"seconds": -1.0}, "seconds"),
    ("OptimizerConfig", {"lr_scheduler": "constant", "lr_warmup_steps": 5}, "lr_warmup_steps"),
    ("OptimizerConfig", {"optimizer_type": "adafactor", "lr_warmup_steps": 5}, "lr_warmup_steps"),
    ("OptimizerConfig", {"learning_rate": 0.0}, "learning_rate"),
    ("SamplingConfig", {"min_timestep": 900, "max_timestep": 100}, "min_timestep"),
    ("SamplingConfig", {"sample_prompts": "a dog", "sample_every_n_steps": 0, "sample_every_n_epochs": 0}, "sample_prompts"),
    ("WanLoRATrainer", {"output_name": "../evil"}, "output_name"),
    ("HunyuanVideoLoRATrainer", {"output_name": "a/b"}, "output_name"),
    ("FramePackLoRATrainer", {"output_name": ""}, "output_name"),
    ("WanVideoGenerator", {"prompt": "  "}, "prompt"),
    ("WanVideoGenerator", {"video_length": 80}, "video_length"),
    ("WanVideoGenerator", {"slg_layers": "nine"}, "slg_layers"),
    ("WanVideoGenerator", {"start_image_path": "gone.png"}, "start_image_path"),
    ("WanVideoGenerator", {"lora_1": "gone.safetensors"}, "lora_1"),
    ("HunyuanVideoGenerator", {"height": 30}, "height"),
    ("FramePackVideoGenerator", {"section_numbers": "last"}, "section_numbers"),
    ("VideoInput", {"path": "gone.mp4"}, "path"),
    ("VideoInput", {"path": "", "file": "none"}, "path"),
    ("VideoComparison", {"height": -1}, "height"),
    ("VideoOutput", {"filename_prefix": "../../up"}, "filename_prefix"),
    ("CompareCheckpoints", {"strengths": "strong"}, "strengths"),
    ("CompareCheckpoints", {"checkpoints": "nothing of this name"}, "checkpoints"),
    ("CompareCheckpoints", {"prompts": "--w 3"}, "prompts"),
    ("TensorBoard", {"folder": "/etc"}, "folder"),
    ("BatchProcessor", {"prompts": "--w 3"}, "prompts"),
    ("BatchProcessor", {"prompt_file": "gone.txt"}, "prompt_file"),
    ("BatchProcessor", {"filename_prefix": ".."}, "filename_prefix"),
    ("LoRAPostHocEMA", {"checkpoints": "nothing of this name"}, "checkpoints"),
    ("LoRAPostHocEMA", {"more_sigma_rel": "wide"}, "more_sigma_rel"),
    ("LoRAPostHocEMA", {"preset": "beta: general", "more_sigma_rel": "0.1"}, "more_sigma_rel"),
    ("LoRAFormatConverter", {"lora": "gone.safetensors"}, "lora"),
    ("LoRAMerger", {"output_name": "con"}, "output_name"),
    ("LoRAExtractor", {"base": "gone.safetensors"}, "base"),
    ("MemoryOptimizer", {"vram": "much"}, "vram"),
    ("BackendInfo", {"refresh": -1}, "refresh"),
)


def test_every_node_has_a_mistake_here(part: Any) -> None:
    assert {f"MusubiTuner_{node}" for node, _, _ in WRONG} == {node.spec.id for node in part("nodes.catalog").NODES}


def rows(said: dict[str, Any]) -> list[tuple[str, str]]:
    """(node, input) of every error."""
    assert not said["node_errors"] or said.get("error"), said
    return [(node, row["extra_info"]["input_name"]) for node, found in said["node_errors"].items() for row in found["errors"]]


@pytest.mark.parametrize(("node", "changes", "widget"), WRONG, ids=[f"{node}-{widget}" for node, _, widget in WRONG])
def test_one_mistake_is_one_error_at_its_widget(node: str, changes: dict[str, Any], widget: str, server: Server, pack: Pack) -> None:
    said = asyncio.run(answer(server, pack.prompt(node, **changes)))
    assert ("1", widget) in rows(said), said
    assert [row for row in rows(said) if row[0] == "1"] == [("1", widget)], said


def test_two_mistakes_are_two_errors_with_their_own_sentences(server: Server, pack: Pack) -> None:
    prompt = pack.prompt("DatasetConfig", path="/etc", target_frames="many")
    inputs = {**prompt["1"]["inputs"], "path": "clips", "target_frames": "1", "width": 17, "previous": ["1", 0]}
    prompt["2"] = {"class_type": prompt["1"]["class_type"], "inputs": inputs}
    prompt["show"]["inputs"]["source"] = ["2", 0]
    said = asyncio.run(answer(server, prompt))
    assert sorted(rows(said)) == [("1", "path"), ("1", "target_frames"), ("2", "width")]
    texts = {row["extra_info"]["input_name"]: row["details"] for found in said["node_errors"].values() for row in found["errors"]}
    assert "outside the folders" in texts["path"] and "target_frames" not in texts["path"]
    assert "not a list of whole numbers" in texts["target_frames"]


def test_other_nodes_keep_their_own_errors(server: Server, pack: Pack) -> None:
    prompt = pack.prompt("BackendInfo")
    prompt["image"] = {"class_type": "LoadImage", "inputs": {"image": "gone.png"}}
    prompt["save"] = {"class_type": "PreviewImage", "inputs": {"images": ["image", 0]}}
    del prompt["show"], prompt["1"]
    said = asyncio.run(answer(server, prompt))
    assert rows(said) == [("image", "image")]
    assert "Invalid image file" in said["node_errors"]["image"]["errors"][0]["details"]


def test_an_error_in_a_run_begins_with_its_sentence(server: Server, pack: Pack) -> None:
    outcome = asyncio.run(server.queue(pack.prompt("DatasetConfig", path="clips")))
    assert outcome.kind == "error"
    assert (outcome.error_type, outcome.error[:7]) == ("MusubiTuner", "nothing"), (outcome.error_type, outcome.error)


async def post(server: Server, path: str, body: Any, **headers: str) -> str:
    import aiohttp

    async with aiohttp.ClientSession() as http, http.post(server.url + path, json=body, headers=headers) as said:
        return await said.text()


def test_mistakes_and_ends_are_said_in_the_language_of_whoever_queues(server: Server, pack: Pack) -> None:
    wrong = {"prompt": pack.prompt("VideoOutput", filename_prefix="../../up")}

    def said(**headers: str) -> tuple[str, str]:
        [row] = json.loads(asyncio.run(post(server, "/prompt", wrong, **headers)))["node_errors"]["1"]["errors"]
        return row["message"], row["details"]

    assert said()[0] == "Not possible" and "is not usable as a file name" in said()[1]
    browser = {"Accept-Language": "ja-JP,ja;q=0.9,en;q=0.8"}
    assert said(**browser)[0] == "できません" and "ファイル名に使えません" in said(**browser)[1]
    asyncio.run(post(server, "/settings/Comfy.Locale", "zh"))
    try:
        assert said(**browser)[0] == "无法执行" and "不能用作文件名" in said(**browser)[1], "the setting counts more than the browser"
        outcome = asyncio.run(server.queue(pack.prompt("DatasetConfig", path="clips")))
        assert outcome.error.startswith("此数据集中没有可用的内容"), outcome.error
        assert [text for node, text in outcome.texts if node == "1"][-1].startswith("失败")
    finally:
        asyncio.run(post(server, "/settings/Comfy.Locale", "en"))
