"""In a real ComfyUI: nodes load, the quickstart runs with progress, cancel, resume, reuse and errors behave. Needs COMFYUI_PATH.

The server gets a base folder of its own and a free port.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
from musubi_backend import __main__ as command_line

pytestmark = [pytest.mark.comfyui, pytest.mark.slow, pytest.mark.timeout(600)]
ROOT = Path(__file__).resolve().parents[2]
START_SECONDS = 400


@dataclass
class Outcome:
    """What a queued prompt came to."""

    kind: str = ""
    error: str = ""
    error_type: str = ""
    progress: list[tuple[str, float, float]] = field(default_factory=list)
    texts: list[tuple[str, str]] = field(default_factory=list)
    trainings: dict[str, str] = field(default_factory=dict)  # node -> the job that it shows
    cached: list[str] = field(default_factory=list)

    def steps_of(self, node: str) -> list[float]:
        return [value for id, value, _ in self.progress if id == node]


class Server:
    def __init__(self, port: int, home: Path, process: subprocess.Popen[bytes], log: Path) -> None:
        self.url, self.home, self.process, self.log = f"http://127.0.0.1:{port}", home, process, log

    async def get(self, path: str) -> Any:
        import aiohttp

        async with aiohttp.ClientSession() as http, http.get(self.url + path) as answer:
            return await answer.json()

    async def queue(self, prompt: dict[str, Any], interrupt_when: Any = None, seconds: float = 240) -> Outcome:
        """Queue a prompt and follow it to its end. `interrupt_when(outcome)` True: press cancel."""
        import aiohttp

        client, prompt_id, outcome = uuid.uuid4().hex, str(uuid.uuid4()), Outcome()
        interrupted = False
        async with aiohttp.ClientSession() as http, http.ws_connect(f"{self.url}/ws?clientId={client}", max_msg_size=0) as socket_:
            await socket_.send_json({"type": "feature_flags", "data": {"supports_preview_metadata": True}})
            async with http.post(f"{self.url}/prompt", json={"prompt": prompt, "client_id": client, "prompt_id": prompt_id}) as answer:
                accepted = await answer.json()
                if answer.status != 200:
                    return Outcome("refused", json.dumps(accepted))
            while not outcome.kind:
                message = await asyncio.wait_for(socket_.receive(), seconds)
                self._take(message, outcome)
                if interrupt_when and not interrupted and interrupt_when(outcome):
                    interrupted = True
                    await http.post(f"{self.url}/interrupt", json={"prompt_id": accepted["prompt_id"]})
        return outcome

    async def refusals(self, prompt: dict[str, Any]) -> str:
        """What ComfyUI says about bad widgets when a prompt is queued. Outputs that are fine would run: they are cancelled."""
        import aiohttp

        async with aiohttp.ClientSession() as http:
            async with http.post(f"{self.url}/prompt", json={"prompt": prompt}) as answer:
                said = await answer.text()
            await http.post(f"{self.url}/queue", json={"clear": True})
            while (await self.get("/queue"))["queue_running"]:
                await http.post(f"{self.url}/interrupt")
                await asyncio.sleep(0.1)
        return said

    def _take(self, message: Any, outcome: Outcome) -> None:
        if isinstance(message.data, bytes):
            if int.from_bytes(message.data[:4], "big") == 3:
                length = int.from_bytes(message.data[4:8], "big")
                outcome.texts.append((message.data[8 : 8 + length].decode(), message.data[8 + length :].decode()))
            return
        event = json.loads(message.data)
        kind, data = event["type"], event.get("data") or {}
        if kind == "progress_state":
            outcome.progress += [(id, node["value"], node["max"]) for id, node in data["nodes"].items() if node["state"] == "running"]
        elif kind == "musubi_tuner.node":
            outcome.trainings[data["node"]] = data["job"]
        elif kind == "execution_cached":
            outcome.cached = data["nodes"]
        elif kind == "execution_error":
            outcome.kind, outcome.error, outcome.error_type = "error", data["exception_message"], data["exception_type"]
        elif kind == "execution_interrupted":
            outcome.kind = "interrupted"
        elif kind == "execution_success":
            outcome.kind = "success"

    def jobs(self) -> list[psutil.Process]:
        """Processes that our jobs are."""
        found = []
        for process in psutil.Process(self.process.pid).children(recursive=True):
            try:
                if process.status() != psutil.STATUS_ZOMBIE and "musubi_backend" in process.cmdline():
                    found.append(process)
            except psutil.Error:
                continue
        return found


@pytest.fixture(scope="module")
def server(comfyui_path: Path, comfyui_python: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    base = tmp_path_factory.mktemp("comfy base")
    with started(comfyui_path, comfyui_python, base, "any-name 名") as made:
        yield made


@contextmanager
def started(comfyui_path: Path, comfyui_python: Path, base: Path, pack: str) -> Iterator[Server]:
    """A ComfyUI on the base folder `base`, with the pack in a folder called `pack` and the demo models and clips in its home."""
    home = base / "our home"
    home.mkdir()
    (home / "config.json").write_text(json.dumps({"interpreter": sys.executable, "engine": "builtin", "allowed_roots": []}))
    board = ("--subject", "chessboard", "--clips", "1")
    for tool, folder, *more in (
        ("demo_models", "models"),
        ("demo_models", "models", "--kind", "wan_i2v"),
        ("demo_dataset", "dataset"),
        ("demo_dataset", "quickstart", *board),
    ):
        assert command_line.main([tool, "--output", str(home / "demo" / folder), *more]) == 0
    (base / "custom_nodes").mkdir()
    (base / "custom_nodes" / pack).symlink_to(ROOT, target_is_directory=True)
    with running(comfyui_path, comfyui_python, base) as made:
        yield made


@contextmanager
def running(comfyui_path: Path, comfyui_python: Path, base: Path, *more: str) -> Iterator[Server]:
    """A ComfyUI on a base folder that `started` has made."""
    home = base / "our home"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    arguments = ["--cpu", "--port", str(port), "--base-directory", str(base), "--database-url", "sqlite:///:memory:", "--disable-api-nodes"]
    arguments += [*more, "--cache-lru", "100"]  # keep results of earlier prompts, as the default does where memory allows
    log = base / "server.log"
    environment = {**os.environ, "MUSUBITUNER_HOME": str(home), "OMP_NUM_THREADS": "1"}
    with log.open("wb") as out:
        process = subprocess.Popen(
            [str(comfyui_python), "main.py", *arguments], cwd=comfyui_path, env=environment, stdout=out, stderr=subprocess.STDOUT
        )
    made = Server(port, home, process, log)
    try:
        _wait_until_up(made, log)
        yield made
    finally:
        process.terminate()
        process.wait(120)


def _wait_until_up(server: Server, log: Path) -> None:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end:
        if server.process.poll() is not None:
            break
        try:
            asyncio.run(server.get("/system_stats"))
        except OSError:
            time.sleep(0.5)
        else:
            return
    pytest.fail(f"ComfyUI did not start:\n{log.read_text(errors='replace')[-3000:]}")


@pytest.fixture
def quickstart(part: Any) -> Any:
    """The quickstart workflow in API format, with changed widgets: quickstart(Node={"widget": value})."""

    def build(**changes: dict[str, Any]) -> dict[str, Any]:
        steps = part("headless.workflow").read(ROOT / "workflows" / "quickstart.json")
        prompt = {}
        for step in steps.values():
            name = step.node.spec.id.split("_", 1)[1]
            links = {socket_: [source, slot] for socket_, (source, slot) in step.links.items()}
            prompt[step.id] = {"class_type": step.node.spec.id, "inputs": {**step.constants, **changes.get(name, {}), **links}}
        return prompt

    return build


def id_of(prompt: dict[str, Any], name: str) -> str:
    return next(key for key, node in prompt.items() if node["class_type"].endswith("_" + name))


def test_all_nodes_are_there_with_tooltips(server: Server, part: Any) -> None:
    known = asyncio.run(server.get("/object_info"))
    for node in part("nodes.catalog").NODES:
        info = known[node.spec.id]
        assert info["category"].startswith("MusubiTuner/")
        assert info["description"]
        for group in (info["input"].get("required", {}), info["input"].get("optional", {})):
            for name, entry in group.items():
                assert entry[1].get("tooltip"), f"{node.spec.id}.{name}"
    assert known["MusubiTuner_WanLoRATrainer"]["output"][0] == "*"


CORE_LOADERS = ("UNETLoader", "VAELoader", "CLIPLoader", "CLIPVisionLoader")


def test_demo_models_are_in_our_lists_and_not_in_those_of_core(server: Server) -> None:
    known = asyncio.run(server.get("/object_info"))
    names = {path.name for path in (server.home / "demo" / "models").glob("*.safetensors")}
    listed = {node: json.dumps(known[node]["input"]) for node in ("MusubiTuner_WanModelPaths", *CORE_LOADERS)}
    assert len(names) >= 4 and all(name in listed["MusubiTuner_WanModelPaths"] for name in names)
    for loader in CORE_LOADERS:
        assert not [name for name in names if name in listed[loader]], loader


def test_quickstart_runs_with_progress_and_a_second_queue_does_not_train(server: Server, quickstart: Any) -> None:
    prompt = quickstart()
    trainer = id_of(prompt, "WanLoRATrainer")
    # core's loader takes the trained LoRA's name in the same graph's validation: the output fits any list
    first = asyncio.run(server.queue(prompt))
    assert first.kind == "success", first.error
    assert len(set(first.steps_of(trainer))) > 5
    assert any("loss" in text for node, text in first.texts if node == trainer)
    lora = server.home.parent / "models" / "loras" / "musubi_tuner" / "quickstart.safetensors"
    before = lora.stat().st_mtime_ns
    assert list((server.home.parent / "output" / "musubi_tuner").glob("quickstart_*.mp4"))

    second = asyncio.run(server.queue(prompt))
    assert second.kind == "success"
    assert trainer in second.cached
    assert lora.stat().st_mtime_ns == before

    lora.unlink()
    third = asyncio.run(server.queue(prompt))
    assert third.kind == "success"
    assert trainer not in third.cached
    assert lora.is_file()
    assert third.steps_of(trainer)[-1:] in ([1], []), "the finished run is copied again, not trained again"


def test_going_back_to_earlier_settings_finds_their_lora(server: Server, quickstart: Any) -> None:
    def trained_for(steps: int) -> dict[str, bytes]:
        """All LoRAs of that name, after a training of so many steps."""
        prompt = quickstart(LoRATrainingConfig={"max_train_steps": steps}, WanLoRATrainer={"output_name": "there and back"})
        for name in ("VideoOutput", "VideoComparison", "VideoInput", "WanVideoGenerator", "WanVideoGenerator"):
            del prompt[id_of(prompt, name)]
        outcome = asyncio.run(server.queue(prompt))
        assert outcome.kind == "success", outcome.error
        folder = server.home.parent / "models" / "loras" / "musubi_tuner"
        return {path.stem: path.read_bytes() for path in folder.glob("there and back*.safetensors")}

    first, both = trained_for(2), trained_for(3)
    assert [*first] == ["there and back"]
    assert len(both) == 2 and both["there and back"] == first["there and back"], "the other one has a hash behind its name"
    jobs = len(list((server.home / "jobs").iterdir()))
    assert trained_for(2) == both
    assert len(list((server.home / "jobs").iterdir())) == jobs, "the finished run is found again, not trained again"


def test_core_nodes_use_the_lora_the_losses_and_the_video_in_the_same_graph(server: Server, quickstart: Any) -> None:
    samples = {"sample_prompts": "a dog", "sample_every_n_steps": 5, "sample_frames": 5, "sample_steps": 2}
    prompt = quickstart(
        WanLoRATrainer={"output_name": "for core"},
        LoRATrainingConfig={"max_train_steps": 10},
        SamplingConfig={**samples, "sample_width": 64, "sample_height": 64},
    )
    trainer, generator = id_of(prompt, "WanLoRATrainer"), id_of(prompt, "WanVideoGenerator")
    strong = {"model": ["100", 0], "strength_model": 1.0}
    _make_loadable_by_core(server)
    prompt |= {
        "100": {"class_type": "UNETLoader", "inputs": {"unet_name": "for_core.safetensors", "weight_dtype": "default"}},
        "101": {"class_type": "LoraLoaderModelOnly", "inputs": {**strong, "lora_name": [trainer, 0]}},
        "102": {"class_type": "ModelSave", "inputs": {"model": ["101", 0], "filename_prefix": "by_name"}},
        "103": {"class_type": "LoraModelLoader", "inputs": {**strong, "lora": [trainer, 2], "bypass": False}},
        "104": {"class_type": "ModelSave", "inputs": {"model": ["103", 0], "filename_prefix": "by_weights"}},
        "105": {"class_type": "LossGraphNode", "inputs": {"loss": [trainer, 3], "filename_prefix": "loss"}},
        "106": {
            "class_type": "SaveVideo",
            "inputs": {"video": [generator, 0], "filename_prefix": "core", "format": "auto", "codec": "auto"},
        },
        "107": {"class_type": "PreviewImage", "inputs": {"images": [generator, 1]}},
    }
    outcome = asyncio.run(server.queue(prompt))
    assert outcome.kind == "success", outcome.error
    shown = asyncio.run(server.get(f"/musubi_tuner/jobs/{outcome.trainings[trainer]}"))
    assert [sample["step"] for sample in shown["samples"]], "samples made while training are shown by the trainer's part of the page"
    assert "lora key not loaded" not in server.log.read_text(errors="replace")

    from safetensors.torch import load_file

    output = server.home.parent / "output"
    base = load_file(server.home / "demo" / "models" / "demo_wan_t2v.safetensors")
    name = "blocks.0.self_attn.q.weight"
    for prefix in ("by_name", "by_weights"):
        saved = load_file(next(output.glob(f"{prefix}*.safetensors")))
        found = next(key for key in saved if key.endswith(name))
        assert not saved[found].float().equal(base[name].float()), "the LoRA changes the weights"
    assert list(output.glob("core*.mp4"))


def _make_loadable_by_core(server: Server) -> None:
    """ComfyUI's Wan always takes text of width 4096: widen the demo model's text embedding, which no LoRA touches."""
    import torch
    from safetensors.torch import load_file, save_file

    weights = load_file(server.home / "demo" / "models" / "demo_wan_t2v.safetensors")
    name = "text_embedding.0.weight"
    weights[name] = torch.nn.functional.pad(weights[name], (0, 4096 - weights[name].shape[1]))
    folder = server.home.parent / "models" / "diffusion_models"
    folder.mkdir(parents=True, exist_ok=True)
    save_file(weights, folder / "for_core.safetensors")


SMALL = {"width": 32, "height": 32, "video_length": 5, "infer_steps": 1, "guidance_scale": 1.0}
DEMO_PATHS = {"vae": "demo_wan_vae.safetensors", "t5": "demo_umt5.safetensors"}


def test_an_image_of_a_core_node_starts_a_video(server: Server) -> None:
    from PIL import Image

    inputs = server.home.parent / "input"
    inputs.mkdir(exist_ok=True)
    Image.new("RGB", (48, 32), (200, 30, 30)).save(inputs / "start.png")
    files = {"task": "i2v-14B", "dit": "demo_wan_i2v.safetensors", "clip": "demo_clip_vision.safetensors", "dit_high_noise": "none"}
    generator = {"models": ["1", 0], "prompt": "a pan", "start_image": ["2", 0], **SMALL}
    prompt = {
        "1": {"class_type": "MusubiTuner_WanModelPaths", "inputs": {**files, **DEMO_PATHS}},
        "2": {"class_type": "LoadImage", "inputs": {"image": "start.png"}},
        "3": {"class_type": "MusubiTuner_WanVideoGenerator", "inputs": with_defaults(server, "WanVideoGenerator", generator)},
        "4": {"class_type": "PreviewImage", "inputs": {"images": ["3", 1]}},
    }
    outcome = asyncio.run(server.queue(prompt))
    assert outcome.kind == "success", outcome.error
    job = max((server.home / "jobs").glob("*wan_generate_video*"), key=lambda path: path.stat().st_mtime_ns)
    assert Image.open(job / "inputs" / "start_image_000.png").getpixel((1, 1)) == (200, 30, 30)

    del prompt["3"]["inputs"]["start_image"]
    refused = asyncio.run(server.queue(prompt))
    assert "needs start_image" in refused.error


def test_frames_of_a_video_and_a_batch_go_into_core_nodes(server: Server) -> None:
    clip = next((server.home / "demo" / "dataset").glob("*.mp4"))
    inputs = server.home.parent / "input"
    inputs.mkdir(exist_ok=True)
    (inputs / "clip.mp4").write_bytes(clip.read_bytes())
    save = {"format": "auto", "codec": "auto"}
    frames = {"path": "", "start": 1, "count": 5, "stride": 2, "fps": 0.0, "file": "clip.mp4"}
    files = {"task": "t2v-1.3B", "dit": "demo_wan_t2v.safetensors", "clip": "none", "dit_high_noise": "none"}
    batch = {"models": ["4", 0], "prompts": "a dog\na cat", "prompt_list": ["6", 0], "filename_prefix": "batch/clip", **SMALL}
    prompt = {
        "1": {"class_type": "MusubiTuner_VideoInput", "inputs": frames},
        "2": {"class_type": "SaveVideo", "inputs": {"video": ["1", 1], "filename_prefix": "loaded", **save}},
        "3": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}},
        "4": {"class_type": "MusubiTuner_WanModelPaths", "inputs": {**files, **DEMO_PATHS}},
        "5": {"class_type": "MusubiTuner_BatchProcessor", "inputs": with_defaults(server, "BatchProcessor", batch)},
        "6": {"class_type": "PrimitiveStringMultiline", "inputs": {"value": "from another node"}},
        "7": {"class_type": "SaveVideo", "inputs": {"video": ["5", 0], "filename_prefix": "each", **save}},
    }
    outcome = asyncio.run(server.queue(prompt))
    assert outcome.kind == "success", outcome.error
    output = server.home.parent / "output"
    assert len(list(output.glob("loaded*.mp4"))) == 1
    assert len(list((output / "batch").glob("clip_*.mp4"))) == 3
    assert len(list(output.glob("each*.mp4"))) == 3, "core's node ran once per video"
    assert any("3 of 3 prompts made a video" in text for node, text in outcome.texts if node == "5")


def with_defaults(server: Server, name: str, given: dict[str, Any]) -> dict[str, Any]:
    """Widget values as the page sends them: those given, the others at their defaults."""
    info = asyncio.run(server.get(f"/object_info/MusubiTuner_{name}"))[f"MusubiTuner_{name}"]["input"]["required"]
    defaults = {widget: spec[1].get("default") for widget, spec in info.items() if len(spec) > 1}
    return {**{widget: value for widget, value in defaults.items() if value is not None}, **given}


def test_cancel_leaves_no_process_and_queueing_again_resumes(server: Server, quickstart: Any) -> None:
    prompt = quickstart(LoRATrainingConfig={"max_train_steps": 4000}, WanLoRATrainer={"output_name": "cancelled"})
    trainer = id_of(prompt, "WanLoRATrainer")
    cancelled = asyncio.run(server.queue(prompt, interrupt_when=lambda seen: max(seen.steps_of(trainer), default=0) >= 3))
    assert cancelled.kind == "interrupted"
    assert server.jobs() == []
    run = next(path for path in (server.home / "runs").iterdir() if path.name.startswith("cancelled-"))
    assert [path for path in run.iterdir() if path.name.endswith("-state")]

    reached = max(cancelled.steps_of(trainer))
    again = asyncio.run(server.queue(prompt, interrupt_when=lambda seen: max(seen.steps_of(trainer), default=0) > reached))
    assert again.kind == "interrupted"
    assert any("continuing from" in text for node, text in again.texts if node == trainer)
    assert server.jobs() == []


def test_an_error_of_the_backend_shows_its_last_line_and_the_log(server: Server, quickstart: Any) -> None:
    loras = server.home.parent / "models" / "loras"
    loras.mkdir(parents=True, exist_ok=True)
    (loras / "no_weights.safetensors").write_bytes(b"this is no LoRA")
    failed = asyncio.run(server.queue(quickstart(WanLoRATrainer={"output_name": "broken", "network_weights": "no_weights.safetensors"})))
    assert failed.kind == "error"
    assert "no_weights.safetensors is not a safetensors file" in failed.error
    assert "log.txt" in failed.error
    assert "Traceback" not in failed.error


def test_bad_widgets_are_rejected_before_anything_runs(server: Server, quickstart: Any) -> None:
    for changes, words in (
        ({"DatasetConfig": {"path": "/etc"}}, "outside the folders"),
        ({"WanVideoGenerator": {"width": 65}}, "multiple of 16"),
        ({"WanLoRATrainer": {"output_name": "../../evil"}}, "file name"),
        ({"WanModelPaths": {"dit": "../../etc/passwd"}}, "not there"),
    ):
        assert words in asyncio.run(server.refusals(quickstart(**changes)))


def test_templates_help_and_translations_are_served(server: Server) -> None:
    templates = asyncio.run(server.get("/workflow_templates"))
    assert any("quickstart" in names for names in templates.values())
    translations = asyncio.run(server.get("/i18n"))
    for language in ("en", "ja", "zh"):
        assert translations[language]["nodeDefs"]["MusubiTuner_WanLoRATrainer"]["display_name"]
