"""What a data set is set to: for the log (in musubi-tuner's lines) and for the metadata of the LoRA trained on it."""

from __future__ import annotations

import os
from dataclasses import fields
from pathlib import Path
from typing import Any

from .config import ImageDataset, VideoDataset
from .discovery import has_control

_NOT_IN_FILES = ("index", "file", "debug_dataset")
_PLACES = ("_directory", "_jsonl_file")


def settings_text(dataset: ImageDataset | VideoDataset) -> str:
    """One indented `key: value` line per setting under `[Dataset n]`."""
    image = isinstance(dataset, ImageDataset)
    values: dict[str, Any] = {
        "is_image_dataset": image,
        "resolution": dataset.resolution,
        "batch_size": dataset.batch_size,
        "num_repeats": dataset.num_repeats,
        "caption_extension": f'"{dataset.caption_extension}"',
        "enable_bucket": dataset.enable_bucket,
        "bucket_no_upscale": dataset.bucket_no_upscale,
        "cache_directory": f'"{dataset.cache_folder}"',
        "debug_dataset": dataset.debug_dataset,
    }
    kind = dataset.kind
    for key in (f"{kind}_directory", f"{kind}_jsonl_file", "control_directory"):
        values[key] = f'"{getattr(dataset, key)}"'
    if isinstance(dataset, VideoDataset):
        values |= _frame_settings(dataset)
        values["fp_latent_window_size"] = dataset.fp_latent_window_size
    else:
        names = ("multiple_target", "fp_latent_window_size", "fp_1f_clean_indices", "fp_1f_target_index", "fp_1f_no_post")
        values |= {name: getattr(dataset, name) for name in (*names, "no_resize_control", "control_resolution")}
    if dataset.validation_split:
        values["validation_split"] = dataset.validation_split
    return "\n".join([f"[Dataset {dataset.index}]", *(f"  {name}: {value}" for name, value in values.items())])


def table(dataset: ImageDataset | VideoDataset) -> dict[str, Any]:
    """The `[[datasets]]` table that gives this data set anywhere: what `general` and flags gave is in it, folders are absolute,
    defaults are left out."""
    values = {}
    for field in fields(dataset):
        value = getattr(dataset, field.name)
        if field.name in _NOT_IN_FILES or value == field.default:
            continue
        values[field.name] = str(Path(value).absolute()) if field.name.endswith(_PLACES) else value
    return {**values, "cache_directory": str(dataset.cache_folder.absolute())}


def metadata(dataset: ImageDataset | VideoDataset) -> dict[str, Any]:
    """One entry of the LoRA's `ss_datasets`; folders are named without their place."""
    kind = dataset.kind
    sources = {key: getattr(dataset, key) for key in (f"{kind}_directory", f"{kind}_jsonl_file", "control_directory")}
    entry: dict[str, Any] = {
        "resolution": dataset.resolution,
        "caption_extension": dataset.caption_extension,
        "batch_size_per_device": dataset.batch_size,
        "num_repeats": dataset.num_repeats,
        "enable_bucket": dataset.enable_bucket,
        "bucket_no_upscale": dataset.enable_bucket and dataset.bucket_no_upscale,
    }
    entry |= {key: os.path.basename(value) for key, value in sources.items() if value is not None}  # noqa: PTH119 (of any text)
    if isinstance(dataset, VideoDataset):
        entry |= _frame_settings(dataset)
    if dataset.validation_split:
        entry["validation_split"] = dataset.validation_split
    entry["has_control"] = has_control(dataset)
    return entry


def _frame_settings(dataset: VideoDataset) -> dict[str, Any]:
    rules = dataset.rules
    return {
        "frame_extraction": rules.effective_mode,
        "frame_stride": rules.stride,
        "frame_sample": rules.samples,
        "target_frames": rules.targets,
        "max_frames": rules.max_frames,
        "source_fps": dataset.source_fps,
    }
