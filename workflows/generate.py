"""Writes the example workflows in ComfyUI's UI format from short descriptions: `python workflows/generate.py`.

ComfyUI offers the JSON files beside this one as templates, and `python -m headless` runs them. They follow from the nodes'
specifications, because widget values are stored by position; a test fails when they are out of date.
"""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
COLUMN, WIDGET_HEIGHT, HEAD = 380, 24, 60
ROW_GAP = 130  # a node grows by the text that it shows when it has run
LARGE_WIDGET_HEIGHT = 90

# name -> nodes in columns: (node, widgets that differ from their defaults, {input: (node, output)})
DEMO_MODELS = {"task": "t2v-1.3B", "dit": "demo_wan_t2v.safetensors", "vae": "demo_wan_vae.safetensors", "t5": "demo_umt5.safetensors"}
REAL_MODELS = {
    "task": "t2v-1.3B",
    "dit": "wan2.1_t2v_1.3B_bf16.safetensors",
    "vae": "wan_2.1_vae.safetensors",
    "t5": "umt5_xxl_fp16.safetensors",
}
_CACHES = [
    ("VAELatentCache", {}, {"dataset": ("DatasetConfig", "dataset"), "models": ("WanModelPaths", "models")}),
    ("TextEncoderCache", {}, {"dataset": ("DatasetConfig", "dataset"), "models": ("WanModelPaths", "models")}),
]
_TRAINER_LINKS = {
    "models": ("WanModelPaths", "models"),
    "latents": ("VAELatentCache", "latents"),
    "text": ("TextEncoderCache", "text"),
    "lora_config": ("LoRATrainingConfig", "lora_config"),
    "optimizer": ("OptimizerConfig", "optimizer"),
    "sampling": ("SamplingConfig", "sampling"),
}
_SAVE = ("VideoOutput", {}, {"video": ("WanVideoGenerator", "video")})

WORKFLOWS: dict[str, list[list[tuple[str, dict[str, Any], dict[str, tuple[str, str]]]]]] = {
    "quickstart": [
        [
            (
                "DatasetConfig",
                {"path": "demo/dataset", "width": 64, "height": 64, "enable_bucket": False, "target_frames": "17", "batch_size": 2},
                {},
            ),
            ("WanModelPaths", DEMO_MODELS, {}),
        ],
        _CACHES,
        [
            (
                "LoRATrainingConfig",
                {
                    "max_train_steps": 100,
                    "network_dim": 8,
                    "network_alpha": 8.0,
                    "mixed_precision": "no",
                    "gradient_checkpointing": False,
                    "save_every_n_steps": 0,
                    "max_data_loader_n_workers": 0,
                    "persistent_data_loader_workers": False,
                },
                {},
            ),
            ("OptimizerConfig", {"optimizer_type": "adamw", "learning_rate": 2e-3}, {}),
            ("SamplingConfig", {}, {}),
        ],
        [("WanLoRATrainer", {"output_name": "quickstart"}, _TRAINER_LINKS)],
        [
            (
                "WanVideoGenerator",
                {
                    "prompt": "a slow pan over a photograph",
                    "width": 64,
                    "height": 64,
                    "video_length": 17,
                    "infer_steps": 8,
                    "guidance_scale": 1.0,
                    "flow_shift": 3.0,
                    "seed": 7,
                },
                {"models": ("WanModelPaths", "models"), "lora_1": ("WanLoRATrainer", "lora_name")},
            ),
        ],
        [("VideoOutput", {"filename_prefix": "musubi_tuner/quickstart"}, _SAVE[2])],
    ],
    "wan_lora_training": [
        [
            ("DatasetConfig", {"path": "my_clips", "width": 480, "height": 272, "target_frames": "1, 17"}, {}),
            ("WanModelPaths", REAL_MODELS, {}),
        ],
        _CACHES,
        [
            ("LoRATrainingConfig", {}, {}),
            ("OptimizerConfig", {}, {}),
            (
                "SamplingConfig",
                {"sample_prompts": "a short description in the words of your captions", "sample_every_n_steps": 250},
                {},
            ),
        ],
        [("WanLoRATrainer", {"output_name": "my_lora"}, _TRAINER_LINKS)],
    ],
    "wan_generate_with_lora": [
        [("WanModelPaths", REAL_MODELS, {})],
        [
            (
                "WanVideoGenerator",
                {
                    "prompt": "a short description in the words of your captions",
                    "lora_1": "musubi_tuner/my_lora.safetensors",
                    "video_length": 33,
                },
                {"models": ("WanModelPaths", "models")},
            ),
        ],
        [("VideoOutput", {"filename_prefix": "musubi_tuner/my_lora"}, _SAVE[2])],
    ],
}


def build(name: str, specs: dict[str, Any]) -> dict[str, Any]:
    """The workflow `name` as ComfyUI saves it. specs: node specifications by name without prefix."""
    nodes: dict[str, dict[str, Any]] = {}
    links: list[list[Any]] = []
    for column, entries in enumerate(WORKFLOWS[name]):
        y = 0
        for short, widgets, _ in entries:
            node = _node(len(nodes) + 1, specs[short], widgets, [column * COLUMN, y])
            nodes[short] = node
            y += node["size"][1] + ROW_GAP
    for entries in WORKFLOWS[name]:
        for short, _, wanted in entries:
            for socket, (source, output) in wanted.items():
                _link(links, nodes[source], specs[source], output, nodes[short], specs[short], socket)
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


def _node(number: int, spec: Any, widgets: dict[str, Any], position: list[int]) -> dict[str, Any]:
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
    return {HERE / f"{name}.json": json.dumps(build(name, specs), ensure_ascii=False, indent=1) + "\n" for name in WORKFLOWS}


def main() -> None:
    sys.path.insert(0, str(HERE.parent))
    runpy.run_path(str(HERE.parent / "headless" / "__main__.py"))["load_pack"]()
    nodes = sys.modules["musubituner_pack.nodes.catalog"].NODES
    for path, text in texts({node.spec.id.split("_", 1)[1]: node.spec for node in nodes}).items():
        path.write_text(text, encoding="utf-8")
        print(path)


if __name__ == "__main__":
    main()
