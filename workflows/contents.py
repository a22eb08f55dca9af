"""What the example workflows hold. Those of a family are described in its folder (`templates.py`)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from types import ModuleType

from ..backend.musubi_backend import architectures
from ..backend.musubi_backend.architectures.card import Card, letters
from ..backend.musubi_backend.architectures.templates import Template, downloads_of, hugging_face, templates_of
from ..nodes.catalog import BY_NAME
from .layout import Entry, Group, Widgets, Workflow

WORDS = "a short description in the words of your captions"
_CAPTION_MODEL = "qwen_2.5_vl_7b_fp8_scaled.safetensors"
_FIRST_FRAME: Entry = ("VideoInput", {"path": "start.png", "count": 1}, {})


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

    @property
    def downloads(self) -> dict[str, tuple[str, str]]:
        """file -> (address, model folder), of the files that Model Paths names."""
        folders = {self.files[part.name]: part.folder for part in self.card.parts if part.name in self.files}
        return {file: (address, folders[file]) for file, address in downloads_of(self.card.id).items() if file in folders}

    @property
    def hidden(self) -> frozenset[tuple[str, str]]:
        """(node, input) of what the page does not show with this model."""
        task = self.template.files.get("task")
        family = self.card.node_name
        return frozenset(
            (name, entry.name) for name, node in BY_NAME.items() for entry in node.spec.inputs if not entry.is_for(family, task)
        )

    def workflow(self, what: str, change: Iterable[str], *groups: Group) -> Workflow:
        """One with the files of this model."""
        return Workflow(note(what, self.downloads, [*change, *self.template.hints]), groups, self.downloads, self.hidden)


def note(what: str, models: Mapping[str, tuple[str, str]], change: Iterable[str]) -> str:
    """A note: what the workflow does, which files it uses, what to change."""
    lines = ["## What it does", what]
    if models:
        lines += ["", "## Files", *(f"* models/{folder}/{file}" for file, (_, folder) in models.items())]
        lines += ["", "ComfyUI offers those that are missing for download. Other releases of the same model work too."]
    lines += ["", "## What to change", *(f"* {sentence}" for sentence in change)]
    return "\n".join(lines)


def dataset(model: Model) -> list[Group]:
    """The clips and the model, and what is encoded of them."""
    links = {"dataset": ("DatasetConfig", "dataset"), "models": model.models}
    return [
        Group("1. Your clips and the model", [("DatasetConfig", model.template.dataset, {}), (model.paths, model.files, {})]),
        Group("2. Encode them, once", [("VAELatentCache", {}, links), ("TextEncoderCache", {}, links)]),
    ]


def trainer(model: Model, config: str = "LoRATrainingConfig") -> Entry:
    """The trainer with everything connected. config: the node that its lora_config comes from."""
    links = {
        "models": model.models,
        "latents": ("VAELatentCache", "latents"),
        "text": ("TextEncoderCache", "text"),
        "lora_config": (config, "lora_config"),
        "optimizer": ("OptimizerConfig", "optimizer"),
        "sampling": ("SamplingConfig", "sampling"),
    }
    return (model.trainer, {"output_name": model.template.lora, **model.template.trainer}, links)


def training(model: Model, *, fitted: bool = False) -> Workflow:
    """From a folder of clips to a LoRA, with samples on the way. fitted: what saves memory is chosen for the GPU."""
    sampling = {"sample_prompts": WORDS, "sample_every_n_steps": 250, **model.template.sampling}
    samples = [Group("4. Samples on the way", [("SamplingConfig", sampling, {})])]
    if model.template.image:
        config: Entry = ("SamplingConfig", sampling, {"start_image": ("VideoInput", "frames")})
        samples = [Group("4. What the samples start from", [_FIRST_FRAME]), Group("5. Samples on the way", [config])]
    fit = {
        "models": model.models,
        "dataset": ("DatasetConfig", "dataset"),
        "lora_config": ("LoRATrainingConfig", "lora_config"),
        "sampling": ("SamplingConfig", "sampling"),
        "optimizer": ("OptimizerConfig", "optimizer"),
    }
    fitting = [Group(f"{4 + len(samples)}. Fit it into your GPU", [("MemoryOptimizer", {}, fit)])] if fitted else []
    memory = (
        "*Memory Optimizer*: *vram*, how much memory the training may take; what saves memory is chosen for it."
        if fitted
        else "Too little memory: *fp8_base*, then *blocks_to_swap*, in the advanced settings."
    )
    return model.workflow(
        f"Trains a LoRA for {model.card.family} on a folder of clips with captions. Run it: what is encoded is kept for the next time. "
        "The trainer shows steps, loss and samples. *Cancel* saves the state, and running again continues.",
        (
            "*Dataset Config*: *path*, a folder in ComfyUI's input folder; *Upload clips…* makes one. A text file of the same name next to "
            "each clip is its caption.",
            "*width* × *height* and *target_frames*: less takes less memory.",
            f"*LoRA Training Config*: *max_train_steps*. {memory}",
            "*Sampling Config*: *sample_prompts*, in the words of your captions.",
            "The trainer's *output_name*: the name of the LoRA, in loras/musubi_tuner.",
        ),
        *dataset(model),
        Group("3. How to train", [("LoRATrainingConfig", {}, {}), ("OptimizerConfig", {"optimizer_type": "adamw"}, {})]),
        *samples,
        *fitting,
        Group(f"{4 + len(samples) + len(fitting)}. Train", [trainer(model, "MemoryOptimizer" if fitted else "LoRATrainingConfig")]),
    )


def generation(model: Model) -> Workflow:
    """A video with the LoRA that was trained."""
    template = model.template
    widgets = {"prompt": WORDS, **dict.fromkeys(template.lora_widgets, f"musubi_tuner/{template.lora}.safetensors"), **template.video}
    links = {"models": model.models, **({"start_image": ("VideoInput", "frames")} if template.image else {})}
    first: list[Entry] = [(model.paths, model.files, {}), *([_FIRST_FRAME] if template.image else [])]
    return model.workflow(
        f"Makes a video with {model.card.family} and a LoRA that you have trained.",
        (
            f"*{'*, *'.join(template.lora_widgets)}*: your LoRA, and how strong it is.",
            "*prompt*, in the words of your captions.",
            "Size, length and *infer_steps*; less is faster. Too little memory: *fp8*, then *blocks_to_swap*, in the advanced settings.",
        ),
        Group("1. The model", first),
        Group("2. The prompt and your LoRA", [(model.generator, widgets, links)]),
        Group("3. The video", [saved(model)]),
    )


def saved(model: Model) -> Entry:
    """The video of the generator, saved."""
    return ("VideoOutput", {"filename_prefix": f"musubi_tuner/{model.template.lora}"}, {"video": (model.generator, "video")})


_DEMO_LORA = {
    "max_train_steps": 300,
    "network_dim": 32,
    "network_alpha": 32.0,
    "gradient_checkpointing": False,
    "save_every_n_steps": 0,
    "max_data_loader_n_workers": 0,
    "persistent_data_loader_workers": False,
}


def quickstart(demo: Model) -> Workflow:
    """Training of the demo model on one clip, and what came of it: the clip, a video without the LoRA and one with it, side by side."""
    plain = f"{demo.generator}: without LoRA"
    videos = {"video_1": ("VideoInput", "video"), "video_2": (plain, "video"), "video_3": (demo.generator, "video")}
    optimizer = {"optimizer_type": "adamw", "learning_rate": 2e-3, "lr_scheduler": "cosine"}
    return demo.workflow(
        "Tries everything with tiny models on one clip of a chessboard, in about a minute and without a GPU. The result shows the clip, a "
        "video without the LoRA and one with it, side by side.",
        (
            "Nothing: run “python install.py --quickstart” in the pack's folder once, which makes the tiny models and the clip, "
            "and press *Run*.",
            "To train on your own clips open *train_a_lora_start_here*.",
        ),
        *dataset(demo),
        Group(
            "3. How to train",
            [
                ("LoRATrainingConfig", _DEMO_LORA, {}),
                ("OptimizerConfig", optimizer, {}),
                ("SamplingConfig", {"timestep_sampling": "uniform"}, {}),
            ],
        ),
        Group("4. Train", [trainer(demo)]),
        Group(
            "5. Try it",
            [
                (demo.generator, demo.template.video, {"models": demo.models, "lora_1": (demo.trainer, "lora_name")}),
                (plain, demo.template.video, {"models": demo.models}),
                ("VideoInput", {"path": "demo/quickstart/chessboard.mp4"}, {}),
            ],
        ),
        Group(
            "6. Compare",
            [
                ("VideoComparison", {"titles": "the clip\nwithout LoRA\nwith LoRA", "height": 256}, videos),
            ],
        ),
        Group(
            "7. The video",
            [("VideoOutput", {"filename_prefix": f"musubi_tuner/{demo.template.lora}"}, {"video": ("VideoComparison", "video")})],
        ),
    )


def lora_average(model: Model) -> Workflow:
    """The checkpoints of a training, averaged, and a video with the average."""
    name = f"{model.template.lora}_ema"
    average: Entry = ("LoRAPostHocEMA", {"checkpoints": model.template.lora, "output_name": name}, {})
    widgets = {"prompt": WORDS, **model.template.video}
    return model.workflow(
        "Averages the checkpoints of a training that is done into one LoRA, often steadier than the last checkpoint, and makes a video "
        "with it. An image shows how much each checkpoint counts.",
        (
            "*training*: one of your trainings; or *checkpoints*: its output name, a folder, or files.",
            "The training must have saved several checkpoints: *save_every_n_steps* or *save_every_n_epochs*.",
            "*preset*: *against overfitting* leaves the last checkpoints out.",
        ),
        Group("1. Average the checkpoints", [average, (model.paths, model.files, {})]),
        Group("2. Try it", [(model.generator, widgets, {"models": model.models, "lora_1": ("LoRAPostHocEMA", "lora_name")})]),
        Group("3. The video", [saved(Model(model.card, replace(model.template, lora=name)))]),
    )


def comparison(model: Model) -> Workflow:
    """How a training went, and which of its checkpoints is best."""
    compared = {"prompts": WORDS, "checkpoints": model.template.lora, "video_length": 33}
    return model.workflow(
        "Shows how a training went, and makes a video with each of some checkpoints, and without a LoRA, with the same seed: which one is "
        "best? The models are loaded once. The videos are added to the training's gallery too.",
        (
            "*Compare Checkpoints*: *training*, one of your trainings; or *checkpoints*: its output name, a folder, or files.",
            "*prompts*, in the words of your captions, and one or two that have nothing to do with them.",
            "*strengths*: 0.7, 1.0 makes a row for each.",
            "The training must have saved several checkpoints: *save_every_n_steps* or *save_every_n_epochs*.",
        ),
        Group("1. How it went", [("TrainingMonitor", {}, {}), ("ResourceMonitor", {}, {})]),
        Group("2. The model", [(model.paths, model.files, {})]),
        Group("3. Compare", [("CompareCheckpoints", compared, {"models": model.models})]),
        Group(
            "4. The video", [("VideoOutput", {"filename_prefix": "musubi_tuner/comparison"}, {"video": ("CompareCheckpoints", "video")})]
        ),
    )


def lora_conversion() -> Workflow:
    """A LoRA in ComfyUI's layout, for other programs."""
    what = "Converts a LoRA, LoHa or LoKr of any program to ComfyUI's or musubi-tuner's layout, and reports what it recognised."
    change = ("*lora*: the file to convert.", "The layout, and the name of the result.")
    group = Group("1. Convert", [("LoRAFormatConverter", {"lora": "musubi_tuner/my_lora.safetensors"}, {})])
    return Workflow(note(what, {}, change), [group])


def lora_merging(model: Model) -> Workflow:
    """Two LoRAs merged into the transformer."""
    pair = {"lora_1": "musubi_tuner/my_lora.safetensors", "multiplier_1": 0.8}
    pair |= {"lora_2": "musubi_tuner/my_style.safetensors", "multiplier_2": 0.5}
    transformer = {file: place for file, place in model.downloads.items() if file == model.files["dit"]}
    change = (
        "*lora_1*, *lora_2* and how strong each is.",
        "*model*: the transformer they are added to; *none* makes one LoRA of them.",
        "*output_name*.",
    )
    what = "Adds LoRAs with strengths to a transformer, for good, or makes one LoRA of them."
    group = Group("1. Merge", [("LoRAMerger", {"model": model.files["dit"], **pair, "output_name": "my_merged_model"}, {})])
    return Workflow(note(what, transformer, change), [group], transformer)


def batch(model: Model) -> Workflow:
    """Many prompts, one after the other."""
    prompts = f"{WORDS}\nanother one, with a seed of its own --d 7"
    widgets = {"prompts": prompts, "video_length": 33, "lora_1": "musubi_tuner/my_lora.safetensors"}
    return model.workflow(
        "Makes a video for each line of *prompts*. The models are loaded once for each GPU.",
        ("*prompts*, one per line. “--d 7” behind one is its seed.", "*lora_1*: your LoRA."),
        Group("1. The model", [(model.paths, model.files, {})]),
        Group("2. The prompts", [("BatchProcessor", widgets, {"models": model.models})]),
    )


def captioning() -> Workflow:
    """Captions by Qwen2.5-VL, and a look at what would be trained."""
    address = hugging_face("Comfy-Org/Qwen-Image_ComfyUI", {_CAPTION_MODEL: "split_files/text_encoders"})[_CAPTION_MODEL]
    models = {_CAPTION_MODEL: (address, "text_encoders")}
    what = "Qwen2.5-VL describes the images and clips of a folder, in text files next to them. Captions that exist are kept."
    change = (
        "*Caption Images*: *path*, your folder. *prompt* says what to describe.",
        "Look the captions over in *Dataset Viewer* and correct them there: what is always the same should have the same words.",
        "With clips connect *videos* instead of *images*, and set *source* to video folder.",
    )
    dataset = ("DatasetConfig", {"source": "image folder", "width": 960, "height": 544}, {"path": ("CaptionImages", "images")})
    return Workflow(
        note(what, models, change),
        [
            Group("1. Describe them", [("CaptionImages", {"path": "my_pictures", "model": _CAPTION_MODEL}, {})]),
            Group("2. How they are cut", [dataset]),
            Group("3. Look and correct", [("DatasetViewer", {}, {"dataset": ("DatasetConfig", "dataset")})]),
        ],
        models,
    )


def workflows(found: ModuleType) -> dict[str, Workflow]:
    """All workflows by name: two for each template of each family, and those that show single nodes with the first family's models.
    found: the package of the architectures."""
    folders = [(card, found.part_of(card.id, "templates")) for card in found.cards().values()]
    families = [(card, module) for card, module in folders if module is not None]
    models = [Model(card, template) for card, module in families for template in module.TEMPLATES]
    return {
        "quickstart": quickstart(Model(families[0][0], families[0][1].QUICKSTART)),
        **{f"{model.template.name}_lora_training": training(model, fitted=model.template.large) for model in models},
        **{f"{model.template.name}_generate_with_lora": generation(model) for model in models},
        "batch_prompts": batch(models[0]),
        "compare_checkpoints": comparison(models[0]),
        "lora_post_hoc_ema": lora_average(models[0]),
        "lora_conversion": lora_conversion(),
        "lora_merging": lora_merging(models[0]),
        "captioning": captioning(),
    }


WORKFLOWS = workflows(architectures)
FIRST = Model(architectures.default_card(), templates_of(architectures.default_card())[0])
