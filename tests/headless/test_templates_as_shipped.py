"""Every shipped template with its own widget values and files of the published names, shapes and dtypes: all nodes, argument lists,
checks and the plan of memory, up to the point where weights are read. The files are headers over a hole (`stand_ins`)."""

from __future__ import annotations

import asyncio
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from musubi_backend import __main__ as command_line
from musubi_backend.architectures import protocol
from musubi_backend.caching.common import find_items
from musubi_backend.caching.settings import CachingSettings
from musubi_backend.demo.clips import write_clips
from musubi_backend.encoders.qwen_vl_load import load_model
from musubi_backend.inference.requests import build_request
from musubi_backend.inference.settings import GenerateSettings
from musubi_backend.layers.experts import experts_of
from musubi_backend.lora import run_network
from musubi_backend.lora.settings import NetworkSettings
from musubi_backend.memory.plan import MemoryPlan
from musubi_backend.memory.settings import MemorySettings
from musubi_backend.options.option import CACHE_LATENTS, CACHE_TEXT, CAPTION, GENERATE, LORA_MERGE, PLAN, TRAIN
from musubi_backend.options.parser import parse
from musubi_backend.options.registry import tool
from musubi_backend.training import train
from musubi_backend.training.rehearsal import rehearse
from musubi_backend.training.samples import Samples
from musubi_backend.training.settings import TrainingSettings
from musubi_backend.training.vram import OFF
from musubi_backend.weights.recognise import recognise
from PIL import Image

from benchmarks import stand_ins

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
META = torch.device("meta")
WITH_DEMO_MODELS = {"quickstart"}  # it runs as it is in other tests
WORKFLOWS = sorted({path.stem for path in (ROOT / "workflows").glob("*.json")} - WITH_DEMO_MODELS)
GB = 1e9

# What the weights of the transformers take, in GB: those of their files in 16 bits. Two experts with `offload_inactive_dit` take the
# device in turns, so that one of them counts.
PLANNED = {
    "train_a_lora_start_here": (torch.bfloat16, 2.84), "train_a_lora.app": (torch.bfloat16, 2.84),
    "lora_post_hoc_ema": (torch.bfloat16, 2.84), "compare_checkpoints": (torch.bfloat16, 2.84),
    "wan_lora_training": (torch.bfloat16, 2.84), "wan_generate_with_lora": (torch.bfloat16, 2.84), "batch_prompts": (torch.bfloat16, 2.84),
    "wan_i2v_lora_training": (torch.float16, 32.79), "wan_i2v_generate_with_lora": (torch.float16, 32.79),
    "wan22_lora_training": (torch.float16, 28.58), "wan22_generate_with_lora": (torch.float16, 28.58),
    "hunyuan_video_lora_training": (torch.bfloat16, 25.64), "hunyuan_video_generate_with_lora": (torch.bfloat16, 25.64),
    "framepack_lora_training": (torch.bfloat16, 25.75), "framepack_generate_with_lora": (torch.bfloat16, 25.75),
}  # fmt: skip
NOTHING_MADE = (
    r"made no cache file|ended without writing|wrote no video|no prompt made a video|nothing was written|nothing could be generated"
    r"|there is no training"
)


@pytest.fixture(scope="module")
def place(shared: Path, tmp_path_factory: pytest.TempPathFactory, backend_python: str) -> Path:
    """A home folder with a stand-in of every file that a template names, and clips and images under the names they have there."""
    home = tmp_path_factory.mktemp("as shipped")
    (home / "config.json").write_text(json.dumps({"interpreter": backend_python, "engine": "builtin", "allowed_roots": []}))
    stand_ins.write_all(home / "models", shared, home / "scratch")
    write_clips(home / "input" / "my_clips", count=1, size=(480, 272), frames=81)
    for name in ("start.png", "my_pictures/one.png"):
        (home / "input" / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (480, 272), "grey").save(home / "input" / name)
    (home / "input" / "my_pictures" / "one.txt").write_text("a grey wall")
    loras = home / "models" / "loras" / "musubi_tuner"
    for name, layer in (("", "blocks.0.self_attn.q"), ("_style", "blocks.0.self_attn.q")):
        stand_ins.lora(loras / f"my{name or '_lora'}.safetensors", [(layer, 1536, 1536)])
    for name in ("my_lora-step00000001", "my_lora"):
        stand_ins.lora(home / "runs" / "my_lora-0" / f"{name}.safetensors", [("blocks.0.self_attn.q", 1536, 1536)])
    for name in ("i2v", "wan22"):
        stand_ins.lora(loras / f"my_{name}_lora.safetensors", [("blocks.0.self_attn.q", 5120, 5120)])
    stand_ins.lora(loras / "my_hunyuan_video_lora.safetensors", [("double_blocks.0.img_attn_proj", 3072, 3072)])
    stand_ins.lora(loras / "my_framepack_lora.safetensors", [("transformer_blocks.0.attn.to_q", 3072, 3072)])
    return home


@pytest.fixture
def on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Number formats as where a GPU computes; no tensor is made on it."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    yield


class Planned:
    """What the tools of one workflow plan, by tool."""

    def __init__(self) -> None:
        self.tools: list[str] = []
        self.dtype: torch.dtype | None = None
        self.on_device = 0

    def run(self, words: list[str]) -> None:
        """One tool, as `python -m musubi_backend` begins it, on the device "meta", where no weight is read."""
        target = tool(words[0])
        self.tools.append(target.name)
        if target.architecture is None and target.verb != LORA_MERGE:
            if target.verb == PLAN:  # one plan instead of those that `auto` compares, which `benchmarks.plans` does
                words[words.index("--vram") + 1] = OFF
            with pytest.MonkeyPatch.context() as patch:  # a plan asks how much memory is free, which is that of the CPU here
                patch.setattr(torch.cuda, "is_available", lambda: False)
                assert command_line.main(words) == 0
            if target.verb == CAPTION:  # all images have captions, so that it has loaded no model
                load_model(Path(parse(target.name, words[1:]).model_path), {}, META, torch.bfloat16)
            return
        args = parse(target.name, words[1:])
        if target.architecture is None:
            assert [recognise(path).id for path in (args.dit, *args.lora_weight)] == ["wan_transformer", "lora", "lora"]  # type: ignore[union-attr]
            Path(args.save_merged_model).write_bytes(b"merged")
            return
        architecture = protocol.load(target.architecture).configured(vars(args))
        command_line._check_models(args, architecture.card)
        if target.verb == CACHE_LATENTS:
            assert find_items(CachingSettings.read(args), architecture.card)[0].items
            architecture.latent_encoder(META)
        elif target.verb == CACHE_TEXT:
            assert find_items(CachingSettings.read(args), architecture.card)[0].items
            architecture.text_encoder(META)
        elif target.verb == TRAIN:
            settings = TrainingSettings.read(args)
            dtype = train.check(settings, architecture).dtype
            rates = run_network.rates(settings.network, settings.schedule.learning_rate, architecture.card)
            rehearse(settings, rates, settings.length.max_train_steps, torch.device("cpu"))
            assert Samples(settings.sampling, settings.saving, architecture)._prompts, "the templates make samples"
            self._models(args, architecture, dtype)
        else:
            assert target.verb == GENERATE
            if getattr(args, "from_file", None) is None:
                build_request({"prompt": args.prompt}, GenerateSettings.read(args), architecture)
            self._models(args, architecture, architecture.generating_dtype(torch.device("cuda")))

    def _models(self, args: Any, architecture: Any, dtype: torch.dtype) -> None:
        architecture.text_encoder(META)
        architecture.condition_encoder(META)
        architecture.latent_decoder(META)
        model = architecture.transformer(META, dtype)
        parts = list(experts_of(model).values())
        assert {parameter.device for part in parts for parameter in part.parameters()} == {META}
        assert {parameter.dtype for part in parts for parameter in part.parameters()} == {dtype}
        sizes = [MemoryPlan.chosen(MemorySettings.read(args)).weights(part)[0] for part in parts]
        self.dtype, self.on_device = dtype, max(sizes) if getattr(args, "offload_inactive_dit", False) else sum(sizes)
        if hasattr(args, "network_dim"):
            with META:
                lora = run_network.build(NetworkSettings.read(args), architecture.card, model, 1, META)
            assert sum(parameter.numel() for parameter in lora.parameters()) > 40e6


def planned(part: Any, home: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> Planned:
    """Let all nodes of a workflow run, with what they start planned instead of started; what would have been made is made up."""
    runner, planning = part("nodes.jobs.runner"), Planned()

    async def start(folder: Any, command: Any) -> Any:
        at = command.argv.index("musubi_backend")
        planning.run(command.argv[at + 1 :])
        folder.log.touch()
        return runner.Job(folder, command, returncode=0, ended=True)

    monkeypatch.setattr(runner, "start", start)
    workflow = part("headless.workflow")
    steps = workflow.read(ROOT / "workflows" / f"{name}.json")
    host = part("headless.terminal").TerminalHost(home, screen=part("headless.terminal").Screen(io.StringIO()))
    part("headless.run")._check(workflow.order(steps), host)
    results: dict[str, tuple[Any, ...]] = {}
    for step in workflow.order(steps):
        linked = {name: results[source][slot] for name, (source, slot) in step.links.items()}
        if linked and all(value is None for value in linked.values()):  # nothing was made that could be saved
            continue
        inputs = {**step.constants, **linked}
        part("nodes.checks").prechecked(step.node, host, inputs)
        values = part("nodes.checks").prepared(step.node, host, inputs)
        try:
            results[step.id] = asyncio.run(step.node.run(host, **values)).values
        except part("backend.musubi_backend.errors").UserError as error:
            assert re.search(NOTHING_MADE, str(error)), f"{step.title}: {error}"
            results[step.id] = _made_up(step, values)
    return planning


def _made_up(step: Any, values: dict[str, Any]) -> tuple[Any, ...]:
    """What a node hands on."""
    if "dataset" in values:
        return ({"architecture": values["models"]["architecture"], "dataset": values["dataset"], "job": ""},)
    return (None,) * len(step.node.spec.outputs)


@pytest.mark.parametrize("name", WORKFLOWS)
def test_a_template_comes_to_the_point_where_weights_are_read(
    part: Any, place: Path, name: str, monkeypatch: pytest.MonkeyPatch, on_a_gpu: None
) -> None:
    found = planned(part, place, name, monkeypatch)
    assert found.tools, "something was to be started"
    dtype, size = PLANNED.get(name, (None, 0.0))
    assert found.dtype == dtype
    assert found.on_device / GB == pytest.approx(size, rel=0.002)


@pytest.mark.parametrize("name", [name for name in WORKFLOWS if name.endswith("training")])
def test_a_training_is_planned_on_a_plain_cpu_too(part: Any, place: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True})
    assert planned(part, place, name, monkeypatch).dtype == torch.float32


def test_every_named_file_is_one_of_readmes(place: Path) -> None:
    """What a template names is in the README's tables, and the other way round."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for path in (place / "models").rglob("*.safetensors"):
        if "loras" not in path.parts and path.stem != "my_merged_model":  # that one a template makes
            assert f"`{path.stem}" in text, path.name
