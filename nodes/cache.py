"""Caching: clips and images through the VAE, captions through the text encoder, once, so that training needs neither."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..backend.musubi_backend.architectures.card import TEXT_ENCODER, Card
from ..backend.musubi_backend.cache.names import latent_files, text_files
from ..backend.musubi_backend.caching.sources import Sources
from ..backend.musubi_backend.counted import counted
from ..backend.musubi_backend.errors import UserError
from ..backend.musubi_backend.options.argv import to_argv
from ..backend.musubi_backend.options.option import CACHE_LATENTS, CACHE_TEXT
from ..backend.musubi_backend.options.registry import options_for, tool_names
from .dataset import DATASET
from .families import shared_widget
from .jobs import config as configuration
from .jobs.config import engine_stamp
from .jobs.engine import refuse_own_keys
from .jobs.follow import run_tool
from .models import MODELS, card_of, facts_of, files_for
from .spec import Host, Input, Node, NodeSpec, Output, Result
from .widgets import UNSET, applicable

LATENTS = "MUSUBITUNER_LATENT_CACHE"
TEXT = "MUSUBITUNER_TEXT_CACHE"
DEVICES = (UNSET, "cuda", "cpu")
NUMBER_FORMATS = (UNSET, "float32", "bfloat16", "float16")


def _common(verb: str) -> tuple[Input, ...]:
    return (
        Input("dataset", DATASET, "From Dataset Config"),
        Input("models", MODELS, "The model's files; the caches fit this architecture only"),
        shared_widget(verb, "skip_existing", True),
        shared_widget(verb, "keep_cache"),
        shared_widget(verb, "batch_size", off=0),
        shared_widget(verb, "num_workers", off=0),
        shared_widget(verb, "device", kind="COMBO", choices=DEVICES, default=UNSET, off=UNSET, advanced=True),
    )


class VAELatentCache(Node):
    spec = NodeSpec(
        id="MusubiTuner_VAELatentCache",
        display_name="VAE Latent Cache",
        category="MusubiTuner/Cache",
        description="Encode the clips and images of a dataset with the VAE. What is cached already is skipped.",
        inputs=(
            *_common(CACHE_LATENTS),
            shared_widget(CACHE_LATENTS, "vae_cache_cpu"),
            shared_widget(CACHE_LATENTS, "disable_cudnn_backend"),
            shared_widget(CACHE_LATENTS, "vae_tiling"),
            shared_widget(CACHE_LATENTS, "vae_chunk_size", off=0),
            shared_widget(CACHE_LATENTS, "vae_spatial_tile_sample_min_size", off=0),
            shared_widget(CACHE_LATENTS, "one_frame_no_2x"),
            shared_widget(CACHE_LATENTS, "one_frame_no_4x"),
            shared_widget(CACHE_LATENTS, "vae_dtype", kind="COMBO", choices=NUMBER_FORMATS, default=UNSET, off=UNSET),
        ),
        outputs=(Output("latents", LATENTS, "For the trainer"),),
    )

    def fingerprint(self, host: Host, **constants: Any) -> str:
        return engine_stamp(host.home)

    async def run(self, host: Host, **inputs: Any) -> Result:
        return await _cache(host, self.spec, CACHE_LATENTS, inputs)


class TextEncoderCache(Node):
    spec = NodeSpec(
        id="MusubiTuner_TextEncoderCache",
        display_name="Text Encoder Cache",
        category="MusubiTuner/Cache",
        description="Encode the captions of a dataset with the text encoder. Captions that are cached already are skipped.",
        inputs=(
            *_common(CACHE_TEXT),
            shared_widget(CACHE_TEXT, "fp8_t5"),
            shared_widget(CACHE_TEXT, "fp8_llm"),
            shared_widget(CACHE_TEXT, "text_encoder_dtype", kind="COMBO", choices=NUMBER_FORMATS, default=UNSET, off=UNSET),
        ),
        outputs=(Output("text", TEXT, "For the trainer"),),
    )

    def fingerprint(self, host: Host, **constants: Any) -> str:
        return engine_stamp(host.home)

    async def run(self, host: Host, **inputs: Any) -> Result:
        return await _cache(host, self.spec, CACHE_TEXT, inputs)


async def _cache(host: Host, spec: NodeSpec, verb: str, inputs: dict[str, Any]) -> Result:
    dataset, models = inputs["dataset"], inputs["models"]
    card = card_of(models)
    tool = tool_names(card)[verb]
    values = caching_values(spec, verb, inputs)
    config = configuration.load(host.home)
    refuse_own_keys(config, dataset["datasets"])
    if config.engine == "builtin":  # musubi-tuner always continues without them
        values["on_bad_items"] = dataset.get("on_bad_items", "stop")
    job = await run_tool(host, tool, to_argv(tool, values))
    files = cache_files(dataset, card, text=verb == CACHE_TEXT)
    if not files:
        raise UserError(f"{tool} made no cache file: no item of the dataset can be used. See {job.folder.log}")
    value = {"architecture": card.id, "caches": card.cache_id, "dataset": dataset, "job": str(job.folder.path)}
    return Result((value,), text=counted(len(files), "cache file"), files=tuple(files))


def caching_values(spec: NodeSpec, verb: str, inputs: dict[str, Any]) -> dict[str, Any]:
    """option name -> value of a caching: the widgets, the model's files, and what follows from models and dataset."""
    dataset, models = inputs["dataset"], inputs["models"]
    card = card_of(models)
    tool = tool_names(card)[verb]
    chosen = applicable(spec.inputs, inputs, tool, card.title)
    known = options_for(tool)
    task = {card.task_option: models["task"]} if card.task_option in known and "task" in models else {}
    if verb == CACHE_TEXT:
        extra = tuple(part.name for part in card.parts if part.role == TEXT_ENCODER and part.name in models)
        files = files_for(models, (*card.text_encoders, *extra), "caching captions")
        return {"dataset_config": dataset["toml"], **task, **files, **chosen}
    encoder = (card.image_encoder,) if card.image_encoder and card.image_encoder in models else ()
    files = files_for(models, ("vae", *encoder), "caching latents")
    facts = {name: models[name] for name in facts_of(card) if name in models}
    follows = {"i2v": card.task(models["task"]).start_image, "one_frame": is_one_frame(dataset), **facts, **task}
    return {"dataset_config": dataset["toml"], **files, **{name: value for name, value in follows.items() if name in known}, **chosen}


def is_one_frame(dataset: Mapping[str, Any]) -> bool:
    """True for a dataset that trains one frame from control images: it says at which indices they are."""
    return any(name.startswith("fp_1f_") for entry in dataset["datasets"] for name in entry)


def cache_files(dataset: dict[str, Any], card: Card, *, text: bool) -> list[Path]:
    """The cache files of one kind in the folders of a dataset, sorted."""
    find = text_files if text else latent_files
    return sorted(path for folder in cache_folders(dataset) for path in find(folder, card.cache_id))


def cache_folders(dataset: dict[str, Any]) -> list[Path]:
    """Where the caches of a dataset lie: `cache_directory`, else the folder of its media."""
    folders = []
    for entry in dataset["datasets"]:
        folder = entry.get("cache_directory") or entry.get("video_directory") or entry.get("image_directory")
        if folder:
            folders.append(Path(folder))
    return folders


def cache_stamps(dataset: dict[str, Any], card: Card) -> list[Any]:
    """What all caches of a dataset hold and were made from: equal while a training on them would give the same. Copying, moving or
    caching the same again changes nothing; of caches without notes (`caching.sources`), name, size and time count."""
    return [
        value
        for folder in cache_folders(dataset)
        for value in Sources(folder).made_from([*latent_files(folder, card.cache_id), *text_files(folder, card.cache_id)])
    ]
