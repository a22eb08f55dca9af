"""Writes the example workflows in ComfyUI's UI format from short descriptions: `python workflows/generate.py`.

ComfyUI offers the JSON files beside this one as templates, and `python -m headless` runs them. They follow from the nodes'
specifications, because widget values are stored by position; a test fails when they are out of date.
"""

from __future__ import annotations

import json
import runpy
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
COLUMN, WIDGET_HEIGHT, HEAD = 380, 24, 60
ROW_GAP = 130  # a node grows by the text that it shows when it has run
LARGE_WIDGET_HEIGHT = 90

Widgets = dict[str, Any]
Entry = tuple[str, Widgets, dict[str, tuple[str, str]]]
"""(node, widgets that differ from their defaults, {input: (node, output)}); where a node is there twice: "Node: its title"."""
Columns = list[list[Entry]]


@dataclass(frozen=True)
class Model:
    """Files of one model as ComfyUI's users have them, and sizes to begin with. node: beginning of its nodes' names; lora: what its
    training calls the LoRA and its generation uses."""

    node: str
    generator: str
    lora: str
    files: Widgets
    dataset: Widgets
    video: Widgets
    sampling: Widgets = field(default_factory=dict)
    trainer: Widgets = field(default_factory=dict)

    @property
    def paths(self) -> str:
        return f"{self.node}ModelPaths"

    @property
    def models(self) -> tuple[str, str]:
        return (self.paths, "models")


_T5 = {"vae": "wan_2.1_vae.safetensors", "t5": "umt5_xxl_fp16.safetensors"}
_HUNYUAN = {
    "vae": "hunyuan_video_vae_bf16.safetensors",
    "text_encoder1": "llava_llama3_fp16.safetensors",
    "text_encoder2": "clip_l.safetensors",
}
_WAN_CLIPS = {"path": "my_clips", "width": 480, "height": 272, "target_frames": "1, 17"}
_WHOLE_CLIPS = {**_WAN_CLIPS, "target_frames": "17"}
DEMO = Model(
    "Wan",
    "WanVideoGenerator",
    "quickstart",
    {"task": "t2v-1.3B", "dit": "demo_wan_t2v.safetensors", "vae": "demo_wan_vae.safetensors", "t5": "demo_umt5.safetensors"},
    {"path": "demo/quickstart", "width": 64, "height": 64, "enable_bucket": False, "target_frames": "17"},
    {
        "prompt": "a chessboard of light and dark wood in soft light",
        **{"width": 64, "height": 64, "video_length": 17, "infer_steps": 10, "guidance_scale": 1.0, "flow_shift": 1.0, "seed": 7},
    },
)
WAN = Model(
    "Wan",
    "WanVideoGenerator",
    "my_lora",
    {"task": "t2v-1.3B", "dit": "wan2.1_t2v_1.3B_bf16.safetensors", **_T5},
    _WAN_CLIPS,
    {"video_length": 33},
)
WAN_I2V = Model(
    "Wan",
    "WanVideoGenerator",
    "my_i2v_lora",
    {"task": "i2v-14B", "dit": "wan2.1_i2v_480p_14B_fp16.safetensors", **_T5, "clip": "clip_vision_h.safetensors"},
    _WHOLE_CLIPS,
    {"video_length": 33},
)
WAN22 = Model(
    "Wan",
    "WanVideoGenerator",
    "my_wan22_lora",
    {
        "task": "t2v-A14B",
        "dit": "wan2.2_t2v_low_noise_14B_fp16.safetensors",
        "dit_high_noise": "wan2.2_t2v_high_noise_14B_fp16.safetensors",
        **_T5,
    },
    _WAN_CLIPS,
    {"video_length": 33, "offload_inactive_dit": True},
    trainer={"offload_inactive_dit": True},
)
HUNYUAN_VIDEO = Model(
    "HunyuanVideo",
    "HunyuanVideoGenerator",
    "my_hunyuan_video_lora",
    {"dit": "hunyuan_video_t2v_720p_bf16.safetensors", **_HUNYUAN},
    {"path": "my_clips", "width": 480, "height": 272, "target_frames": "1, 25"},
    {"width": 480, "height": 272, "video_length": 33},
    sampling={"discrete_flow_shift": 7.0},
)
FRAMEPACK = Model(
    "FramePack",
    "FramePackVideoGenerator",
    "my_framepack_lora",
    {"dit": "FramePackI2V_HY_bf16.safetensors", **_HUNYUAN, "image_encoder": "sigclip_vision_patch14_384.safetensors"},
    {"path": "my_clips", "width": 480, "height": 272, "target_frames": "73"},
    {"width": 480, "height": 272, "video_seconds": 3.0},
    sampling={"sample_frames": 37},
)
_WORDS = "a short description in the words of your captions"


def _dataset(model: Model) -> Columns:
    dataset = {"dataset": ("DatasetConfig", "dataset"), "models": model.models}
    return [
        [("DatasetConfig", model.dataset, {}), (model.paths, model.files, {})],
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
    return (f"{model.node}LoRATrainer", {"output_name": model.lora, **model.trainer}, links)


def training(model: Model, *, picture: bool = False) -> Columns:
    """From a folder of clips to a LoRA, with samples on the way. picture: the samples start from one."""
    sampling = {"sample_prompts": _WORDS, "sample_every_n_steps": 250, **model.sampling}
    start: Columns = [[_FIRST_FRAME]] if picture else []
    config: Entry = ("SamplingConfig", sampling, {"start_image": ("VideoInput", "frames")} if picture else {})
    return [
        *start,
        *_dataset(model),
        [("LoRATrainingConfig", {}, {}), ("OptimizerConfig", {"optimizer_type": "adamw"}, {}), config],
        [_trainer(model)],
    ]


_FIRST_FRAME: Entry = ("VideoInput", {"path": "start.png", "count": 1}, {})


def generation(model: Model, *, picture: bool = False, loras: tuple[str, ...] = ("lora_1",)) -> Columns:
    """A video with the LoRA that was trained. picture: it starts from one. loras: the widgets that name it."""
    widgets = {"prompt": _WORDS, **dict.fromkeys(loras, f"musubi_tuner/{model.lora}.safetensors"), **model.video}
    links = {"models": model.models, **({"start_image": ("VideoInput", "frames")} if picture else {})}
    first: list[Entry] = [(model.paths, model.files, {}), *([_FIRST_FRAME] if picture else [])]
    return [first, [(model.generator, widgets, links)], [_saved(model)]]


def _saved(model: Model) -> Entry:
    return ("VideoOutput", {"filename_prefix": f"musubi_tuner/{model.lora}"}, {"video": (model.generator, "video")})


def _demo_training(**changes: Any) -> Columns:
    """A training of the demo model that learns one clip by heart, and soon."""
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
        *_dataset(DEMO),
        [("LoRATrainingConfig", lora, {}), ("OptimizerConfig", optimizer, {}), ("SamplingConfig", {"timestep_sampling": "uniform"}, {})],
        [_trainer(DEMO)],
    ]


def _quickstart() -> Columns:
    """Training on one clip, and what came of it: the clip, a video without the LoRA and one with it, side by side."""
    plain = f"{DEMO.generator}: without LoRA"
    videos = {"video_1": ("VideoInput", "video"), "video_2": (plain, "video"), "video_3": (DEMO.generator, "video")}
    return [
        *_demo_training(),
        [
            (DEMO.generator, DEMO.video, {"models": DEMO.models, "lora_1": ("WanLoRATrainer", "lora_name")}),
            (plain, DEMO.video, {"models": DEMO.models}),
            ("VideoInput", {"path": "demo/quickstart/chessboard.mp4"}, {}),
        ],
        [("VideoComparison", {"titles": "the clip\nwithout LoRA\nwith LoRA", "height": 256}, videos)],
        [("VideoOutput", {"filename_prefix": f"musubi_tuner/{DEMO.lora}"}, {"video": ("VideoComparison", "video")})],
    ]


def _lora_average() -> Columns:
    """A short training of the demo model that keeps its checkpoints, their average, and a video with it."""
    average: Entry = ("LoRAPostHocEMA", {"output_name": "quickstart_ema"}, {"job": ("WanLoRATrainer", "job")})
    return [
        *_demo_training(max_train_steps=40, save_every_n_steps=8),
        [average],
        [(DEMO.generator, DEMO.video, {"models": DEMO.models, "lora_1": ("LoRAPostHocEMA", "lora_name")})],
        [_saved(replace(DEMO, lora="quickstart_ema"))],
    ]


def _lora_conversion() -> Columns:
    """A LoRA in ComfyUI's layout, for other programs."""
    return [[("LoRAFormatConverter", {"lora": "musubi_tuner/my_lora.safetensors"}, {})]]


def _lora_merging() -> Columns:
    """Two LoRAs merged into the transformer."""
    pair = {"lora_1": "musubi_tuner/my_lora.safetensors", "multiplier_1": 0.8}
    pair |= {"lora_2": "musubi_tuner/my_style.safetensors", "multiplier_2": 0.5}
    return [[("LoRAMerger", {"model": WAN.files["dit"], **pair, "output_name": "my_merged_model"}, {})]]


def _batch() -> Columns:
    prompts = f"{_WORDS}\nanother one, with a seed of its own --d 7"
    widgets = {"prompts": prompts, "video_length": 33, "lora_1": "musubi_tuner/my_lora.safetensors"}
    return [[(WAN.paths, WAN.files, {})], [("BatchProcessor", widgets, {"models": WAN.models})]]


def _captioning() -> Columns:
    model = {"path": "my_pictures", "model": "qwen_2.5_vl_7b_fp8_scaled.safetensors"}
    return [
        [("CaptionImages", model, {})],
        [("DatasetConfig", {"source": "image folder", "width": 960, "height": 544}, {"path": ("CaptionImages", "images")})],
        [("DatasetViewer", {}, {"dataset": ("DatasetConfig", "dataset")})],
    ]


WORKFLOWS: dict[str, Columns] = {
    "quickstart": _quickstart(),
    "wan_lora_training": training(WAN),
    "wan_generate_with_lora": generation(WAN),
    "wan_i2v_lora_training": training(WAN_I2V, picture=True),
    "wan_i2v_generate_with_lora": generation(WAN_I2V, picture=True),
    "wan22_lora_training": training(WAN22),
    "wan22_generate_with_lora": generation(WAN22, loras=("lora_1", "high_lora_1")),
    "hunyuan_video_lora_training": training(HUNYUAN_VIDEO),
    "hunyuan_video_generate_with_lora": generation(HUNYUAN_VIDEO),
    "framepack_lora_training": training(FRAMEPACK, picture=True),
    "framepack_generate_with_lora": generation(FRAMEPACK, picture=True),
    "batch_prompts": _batch(),
    "lora_post_hoc_ema": _lora_average(),
    "lora_conversion": _lora_conversion(),
    "lora_merging": _lora_merging(),
    "captioning": _captioning(),
}


def build(name: str, specs: dict[str, Any]) -> dict[str, Any]:
    """The workflow `name` as ComfyUI saves it. specs: node specifications by name without prefix."""
    nodes: dict[str, dict[str, Any]] = {}
    links: list[list[Any]] = []
    for column, entries in enumerate(WORKFLOWS[name]):
        y = 0
        for entry, widgets, _ in entries:
            node = _node(len(nodes) + 1, specs[_short(entry)], widgets, [column * COLUMN, y])
            if _short(entry) != entry:
                node["title"] = entry.partition(": ")[2]
            nodes[entry] = node
            y += node["size"][1] + ROW_GAP
    for entries in WORKFLOWS[name]:
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
