"""Writes the example workflows in ComfyUI's UI format from short descriptions: `python workflows/generate.py`, with the environment's
python. Those of a family are described in its folder (`templates.py`).

ComfyUI offers the JSON files next to this one as templates, and `python -m headless` runs them. They follow from the nodes'
specifications, because widget values are stored by position; a test fails when they are out of date.
"""

from __future__ import annotations

import json
import runpy
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

from musubi_backend import architectures
from musubi_backend.architectures.card import Card, letters
from musubi_backend.architectures.templates import Template

HERE = Path(__file__).resolve().parent
COLUMN, WIDGET_HEIGHT, HEAD = 380, 24, 60
ROW_GAP = 130  # a node grows by the text that it shows when it has run
LARGE_WIDGET_HEIGHT = 90

Widgets = Mapping[str, Any]
Entry = tuple[str, Widgets, dict[str, tuple[str, str]]]
"""(node, widgets that differ from their defaults, {input: (node, output)}); where a node is there twice: "Node: its title"."""
Columns = list[list[Entry]]


@dataclass(frozen=True)
class Model:
    """A family's nodes, and one of its templates."""

    card: Card
    template: Template

    @property
    def paths(self) -> str:
        return f"{self.card.node_name}ModelPaths"

    @property
    def trainer(self) -> str:
        return f"{self.card.node_name}LoRATrainer"

    @property
    def generator(self) -> str:
        return f"{letters(self.card.generator_title)}Generator"

    @property
    def models(self) -> tuple[str, str]:
        return (self.paths, "models")

    @property
    def files(self) -> Widgets:
        """Widgets of Model Paths: the files that the template's task uses."""
        chosen = set(self.template.files.values())
        used = (part for part in self.card.parts if not part.tasks or chosen & set(part.tasks))
        return {part.name: part.example for part in used} | dict(self.template.files)


_WORDS = "a short description in the words of your captions"


def _dataset(model: Model) -> Columns:
    dataset = {"dataset": ("DatasetConfig", "dataset"), "models": model.models}
    return [
        [("DatasetConfig", model.template.dataset, {}), (model.paths, model.files, {})],
        [("VAELatentCache", {}, dataset), ("TextEncoderCache", {}, dataset)],
    ]


def _trainer(model: Model) -> Entry:
    links = {
        "models": model.models,
        "latents": ("VAELatentCache", "latents"),
        "text": ("TextEncoderCache", "text"),
        "lora_config": ("LoRATrainingConfig", "lora_config"),
        "optimizer": ("OptimizerConfig", "optimizer"),
        "sampling": ("SamplingConfig", "sampling"),
    }
    return (model.trainer, {"output_name": model.template.lora, **model.template.trainer}, links)


def training(model: Model) -> Columns:
    """From a folder of clips to a LoRA, with samples on the way."""
    sampling = {"sample_prompts": _WORDS, "sample_every_n_steps": 250, **model.template.sampling}
    picture = model.template.picture
    start: Columns = [[_FIRST_FRAME]] if picture else []
    config: Entry = ("SamplingConfig", sampling, {"start_image": ("VideoInput", "frames")} if picture else {})
    return [
        *start,
        *_dataset(model),
        [("LoRATrainingConfig", {}, {}), ("OptimizerConfig", {"optimizer_type": "adamw"}, {}), config],
        [_trainer(model)],
    ]


_FIRST_FRAME: Entry = ("VideoInput", {"path": "start.png", "count": 1}, {})


def generation(model: Model) -> Columns:
    """A video with the LoRA that was trained."""
    template = model.template
    widgets = {"prompt": _WORDS, **dict.fromkeys(template.lora_widgets, f"musubi_tuner/{template.lora}.safetensors"), **template.video}
    links = {"models": model.models, **({"start_image": ("VideoInput", "frames")} if template.picture else {})}
    first: list[Entry] = [(model.paths, model.files, {}), *([_FIRST_FRAME] if template.picture else [])]
    return [first, [(model.generator, widgets, links)], [_saved(model)]]


def _saved(model: Model) -> Entry:
    return ("VideoOutput", {"filename_prefix": f"musubi_tuner/{model.template.lora}"}, {"video": (model.generator, "video")})


def _demo_training(demo: Model, **changes: Any) -> Columns:
    """A training of the demo model that memorises one clip, and soon."""
    lora = {
        "max_train_steps": 300,
        "network_dim": 32,
        "network_alpha": 32.0,
        "gradient_checkpointing": False,
        "save_every_n_steps": 0,
        "max_data_loader_n_workers": 0,
        "persistent_data_loader_workers": False,
        **changes,
    }
    optimizer = {"optimizer_type": "adamw", "learning_rate": 2e-3, "lr_scheduler": "cosine"}
    return [
        *_dataset(demo),
        [("LoRATrainingConfig", lora, {}), ("OptimizerConfig", optimizer, {}), ("SamplingConfig", {"timestep_sampling": "uniform"}, {})],
        [_trainer(demo)],
    ]


def _quickstart(demo: Model) -> Columns:
    """Training on one clip, and what came of it: the clip, a video without the LoRA and one with it, side by side."""
    plain = f"{demo.generator}: without LoRA"
    videos = {"video_1": ("VideoInput", "video"), "video_2": (plain, "video"), "video_3": (demo.generator, "video")}
    return [
        *_demo_training(demo),
        [
            (demo.generator, demo.template.video, {"models": demo.models, "lora_1": (demo.trainer, "lora_name")}),
            (plain, demo.template.video, {"models": demo.models}),
            ("VideoInput", {"path": "demo/quickstart/chessboard.mp4"}, {}),
        ],
        [("VideoComparison", {"titles": "the clip\nwithout LoRA\nwith LoRA", "height": 256}, videos)],
        [("VideoOutput", {"filename_prefix": f"musubi_tuner/{demo.template.lora}"}, {"video": ("VideoComparison", "video")})],
    ]


def _lora_average(demo: Model) -> Columns:
    """A short training of the demo model that keeps its checkpoints, their average, and a video with it."""
    average: Entry = ("LoRAPostHocEMA", {"output_name": "quickstart_ema"}, {"job": (demo.trainer, "job")})
    return [
        *_demo_training(demo, max_train_steps=40, save_every_n_steps=8),
        [average],
        [(demo.generator, demo.template.video, {"models": demo.models, "lora_1": ("LoRAPostHocEMA", "lora_name")})],
        [_saved(Model(demo.card, replace(demo.template, lora="quickstart_ema")))],
    ]


def _lora_conversion() -> Columns:
    """A LoRA in ComfyUI's layout, for other programs."""
    return [[("LoRAFormatConverter", {"lora": "musubi_tuner/my_lora.safetensors"}, {})]]


def _lora_merging(model: Model) -> Columns:
    """Two LoRAs merged into the transformer."""
    pair = {"lora_1": "musubi_tuner/my_lora.safetensors", "multiplier_1": 0.8}
    pair |= {"lora_2": "musubi_tuner/my_style.safetensors", "multiplier_2": 0.5}
    return [[("LoRAMerger", {"model": model.files["dit"], **pair, "output_name": "my_merged_model"}, {})]]


def _batch(model: Model) -> Columns:
    prompts = f"{_WORDS}\nanother one, with a seed of its own --d 7"
    widgets = {"prompts": prompts, "video_length": 33, "lora_1": "musubi_tuner/my_lora.safetensors"}
    return [[(model.paths, model.files, {})], [("BatchProcessor", widgets, {"models": model.models})]]


def _captioning() -> Columns:
    model = {"path": "my_pictures", "model": "qwen_2.5_vl_7b_fp8_scaled.safetensors"}
    return [
        [("CaptionImages", model, {})],
        [("DatasetConfig", {"source": "image folder", "width": 960, "height": 544}, {"path": ("CaptionImages", "images")})],
        [("DatasetViewer", {}, {"dataset": ("DatasetConfig", "dataset")})],
    ]


def workflows(found: ModuleType) -> dict[str, Columns]:
    """All workflows by name: two for each template of each family, and those that show single nodes with the first family's models.
    found: the package of the architectures."""
    folders = [(card, found.part_of(card.id, "templates")) for card in found.cards().values()]
    families = [(card, module) for card, module in folders if module is not None]
    models = [Model(card, template) for card, module in families for template in module.TEMPLATES]
    demo = Model(families[0][0], families[0][1].QUICKSTART)
    return {
        "quickstart": _quickstart(demo),
        **{f"{model.template.name}_lora_training": training(model) for model in models},
        **{f"{model.template.name}_generate_with_lora": generation(model) for model in models},
        "batch_prompts": _batch(models[0]),
        "lora_post_hoc_ema": _lora_average(demo),
        "lora_conversion": _lora_conversion(),
        "lora_merging": _lora_merging(models[0]),
        "captioning": _captioning(),
    }


WORKFLOWS = workflows(architectures)


def build(columns: Columns, specs: dict[str, Any]) -> dict[str, Any]:
    """A workflow as ComfyUI saves it. specs: node specifications by name without prefix."""
    nodes: dict[str, dict[str, Any]] = {}
    links: list[list[Any]] = []
    for column, entries in enumerate(columns):
        y = 0
        for entry, widgets, _ in entries:
            node = _node(len(nodes) + 1, specs[_short(entry)], widgets, [column * COLUMN, y])
            if _short(entry) != entry:
                node["title"] = entry.partition(": ")[2]
            nodes[entry] = node
            y += node["size"][1] + ROW_GAP
    for entries in columns:
        for entry, _, wanted in entries:
            for socket, (source, output) in wanted.items():
                _link(links, nodes[source], specs[_short(source)], output, nodes[entry], specs[_short(entry)], socket)
    return {
        "last_node_id": len(nodes),
        "last_link_id": len(links),
        "nodes": list(nodes.values()),
        "links": links,
        "groups": [],
        "config": {},
        "extra": {},
        "version": 0.4,
    }


def _short(name: str) -> str:
    return name.partition(": ")[0]


def _node(number: int, spec: Any, widgets: Widgets, position: list[int]) -> dict[str, Any]:
    values: list[Any] = []
    height = HEAD
    for entry in spec.inputs:
        if not entry.is_widget:
            height += WIDGET_HEIGHT
            continue
        values.append(widgets.get(entry.name, entry.default))
        if entry.name == "seed":
            values.append("fixed")  # ComfyUI's page adds this mode after an input called "seed"
        height += LARGE_WIDGET_HEIGHT if entry.multiline else WIDGET_HEIGHT
    unknown = set(widgets) - {entry.name for entry in spec.inputs if entry.is_widget}
    if unknown:
        raise ValueError(f"{spec.id} has no widgets {unknown}")
    return {
        "id": number,
        "type": spec.id,
        "pos": position,
        "size": [COLUMN - 60, max(height, HEAD + WIDGET_HEIGHT * len(spec.outputs))],
        "flags": {},
        "order": number - 1,
        "mode": 0,
        "inputs": [{"name": entry.name, "type": entry.kind, "link": None} for entry in spec.inputs if not entry.is_widget],
        "outputs": [{"name": output.name, "type": output.kind, "links": []} for output in spec.outputs],
        "properties": {"Node name for S&R": spec.id},
        "widgets_values": values,
    }


def _link(
    links: list[list[Any]], origin: dict[str, Any], origin_spec: Any, output: str, target: dict[str, Any], target_spec: Any, socket: str
) -> None:
    number = len(links) + 1
    slot = [entry.name for entry in origin_spec.outputs].index(output)
    names = [entry["name"] for entry in target["inputs"]]
    if socket not in names:
        entry = target_spec.input(socket)
        target["inputs"].append({"name": socket, "type": entry.kind, "widget": {"name": socket}, "link": None})
        names.append(socket)
    target["inputs"][names.index(socket)]["link"] = number
    origin["outputs"][slot]["links"].append(number)
    links.append([number, origin["id"], slot, target["id"], names.index(socket), origin_spec.outputs[slot].kind])


def texts(specs: dict[str, Any]) -> dict[Path, str]:
    """file -> its text, for all workflows."""
    built = {name: build(columns, specs) for name, columns in WORKFLOWS.items()}
    return {HERE / f"{name}.json": json.dumps(workflow, ensure_ascii=False, indent=1) + "\n" for name, workflow in built.items()}


def main() -> None:
    sys.path.insert(0, str(HERE.parent))
    runpy.run_path(str(HERE.parent / "headless" / "__main__.py"))["load_pack"]()
    nodes = sys.modules["musubituner_pack.nodes.catalog"].NODES
    for path, text in texts({node.spec.id.split("_", 1)[1]: node.spec for node in nodes}).items():
        path.write_text(text, encoding="utf-8")
        print(path)


if __name__ == "__main__":
    main()
