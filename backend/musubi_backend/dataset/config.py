"""The dataset file: TOML or JSON with an optional `general` table and a list of `datasets` (musubi-tuner's format).

A value is looked up in the dataset, then in `general`, then among the command-line flags of the same name, then the default
holds. Relative folders start at the working directory, as in musubi-tuner.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar

from ..documents import parse_json, parse_toml
from ..errors import UserError
from ..texts import read_text
from . import frames, schema
from .buckets import Size

logger = logging.getLogger(__name__)

_STEP = 16  # pixels: the VAEs' 8 times the transformers' patch of 2
_SMALLEST_BUCKETED = 32 * 32  # the narrowest bucket is half the root of the area, and must be 16 pixels wide
_LARGEST = {  # far beyond any use; without them a slip of the finger takes all time or memory
    "resolution": 16384,
    "control_resolution": 16384,
    "batch_size": 4096,
    "num_repeats": 100_000,
    "target_frames": 100_000,
    "max_frames": 100_000,
    "frame_stride": 1_000_000,
    "frame_sample": 10_000,
    "source_fps": 10_000,
    "fp_latent_window_size": 1000,
    "fp_1f_clean_indices": 100_000,
    "fp_1f_target_index": 100_000,
}


@dataclass(frozen=True)
class Dataset:
    """What image and video datasets share. `index` is the position in the file and `file` the dataset file, for messages;
    `validation_split` the share of its images or clips that are not trained on (`held_out`)."""

    kind: ClassVar[str]

    index: int = 0
    file: str = ""
    resolution: Size = (960, 544)
    caption_extension: str | None = None
    batch_size: int = 1
    num_repeats: int = 1
    enable_bucket: bool = False
    bucket_no_upscale: bool = False
    cache_directory: str | None = None
    control_directory: str | None = None
    fp_latent_window_size: int = 9
    debug_dataset: bool = False
    validation_split: float = 0.0

    @property
    def source(self) -> tuple[str, str] | None:
        """(key, value) of the folder or JSONL file the items come from; None when the file names neither."""
        for key in (f"{self.kind}_directory", f"{self.kind}_jsonl_file"):
            if getattr(self, key) is not None:
                return key, getattr(self, key)
        return None

    @property
    def cache_folder(self) -> Path:
        """Where the caches lie: `cache_directory`, else the folder of the media."""
        folder = self.cache_directory or getattr(self, f"{self.kind}_directory")
        if folder is None:
            raise UserError(f"{self.label}: cache_directory is missing; with a JSONL file it must be given")
        return Path(folder)

    @property
    def label(self) -> str:
        """How messages name this dataset."""
        return f"{self.file or 'dataset file'}, datasets[{self.index}]"


@dataclass(frozen=True)
class ImageDataset(Dataset):
    kind: ClassVar[str] = "image"

    image_directory: str | None = None
    image_jsonl_file: str | None = None
    multiple_target: bool = False
    fp_1f_clean_indices: tuple[int, ...] | None = None
    fp_1f_target_index: int | None = None
    fp_1f_no_post: bool = False
    no_resize_control: bool = False
    control_resolution: Size | None = None


@dataclass(frozen=True)
class VideoDataset(Dataset):
    kind: ClassVar[str] = "video"

    video_directory: str | None = None
    video_jsonl_file: str | None = None
    target_frames: tuple[int, ...] = (1,)
    frame_extraction: str = "head"
    frame_stride: int = 1
    frame_sample: int = 1
    max_frames: int = 129
    source_fps: float | None = None

    @property
    def rules(self) -> frames.FrameRules:
        """The frame windows this dataset asks for, targets rounded down to 4n+1."""
        return frames.FrameRules(
            self.frame_extraction, frames.round_targets(self.target_frames), self.frame_stride, self.frame_sample, self.max_frames
        )


@dataclass(frozen=True)
class DatasetConfig:
    """A dataset file that was read."""

    path: Path
    datasets: tuple[ImageDataset | VideoDataset, ...]


def load_config(path: str | os.PathLike[str], flags: Mapping[str, Any] | None = None) -> DatasetConfig:
    """Read and check a dataset file. `flags`: command-line values used where the file is silent (None = not given).

    UserError names the file, the dataset, the key and what was expected. Folders are not looked at: training needs only caches.
    """
    file = Path(path)
    config = DatasetConfig(file, parse_config(read_file(file), str(file), flags))
    if not config.datasets:
        raise UserError(f"{file} has no datasets; add a [[datasets]] section with image_directory or video_directory")
    for dataset in config.datasets:
        _check(dataset)
    _refuse_shared_caches(config)
    return config


def parse_config(content: Any, file: str = "", flags: Mapping[str, Any] | None = None) -> tuple[ImageDataset | VideoDataset, ...]:
    """The datasets of a parsed file, by musubi-tuner's schema alone. UserError for unknown keys and wrong types."""
    name = file or "dataset file"
    if not isinstance(content, dict):
        raise UserError(f"{name} must hold a table with `general` and `datasets`, not {type(content).__name__}")
    for key in content:
        if key not in ("general", "datasets"):
            raise UserError(f"{name}: unknown key {key!r} at the top; only [general] and [[datasets]] stand there")
    sections = content.get("datasets", [])
    if not isinstance(sections, list):
        raise UserError(f"{name}: datasets must be a list; write [[datasets]] with two brackets")
    general = schema.checked(_renamed(content.get("general", {}), f"{name}, [general]"), schema.SHARED, f"{name}, [general]")
    given = {key: value for key, value in (flags or {}).items() if value is not None}
    return tuple(_dataset(section, index, file, general, given) for index, section in enumerate(sections))


def read_file(path: Path) -> Any:
    """The parsed content of a `.toml` or `.json` file; UserError with line and column when it is broken."""
    kind = path.suffix.lower()
    if kind not in (".toml", ".json"):
        raise UserError(f"{path} is not a dataset file: its name must end in .toml or .json")
    try:
        text = read_text(path)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; give the path of your dataset file to --dataset_config") from None
    except ValueError as error:
        raise UserError(f"{path} is {error}") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error
    if kind == ".json":
        return _parse_json(path, text)
    return _parse_toml(path, text)


def _parse_json(path: Path, text: str) -> Any:
    try:
        return parse_json(text, object)
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is not valid JSON: {error.msg} (at line {error.lineno}, column {error.colno})") from None
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON: {error}") from None


def _parse_toml(path: Path, text: str) -> Any:
    try:
        return parse_toml(text)
    except ValueError as error:
        hint = "; in \"double quotes\" a backslash starts an escape: write paths with / or in 'single quotes'" if "\\" in text else ""
        raise UserError(f"{path} is not valid TOML: {error}{hint}") from None


def _dataset(section: Any, index: int, file: str, general: dict[str, Any], flags: dict[str, Any]) -> ImageDataset | VideoDataset:
    where = f"{file or 'dataset file'}, datasets[{index}]"
    section = _renamed(section, where)
    is_table = isinstance(section, dict)
    keys = schema.VIDEO if is_table and ("video_directory" in section or "video_jsonl_file" in section) else schema.IMAGE
    values = schema.checked(section, keys, where)
    cls = ImageDataset if "image_directory" in values or "image_jsonl_file" in values else VideoDataset
    names = {field.name for field in fields(cls)} - {"index", "file"}
    merged = {key: value for key, value in {**flags, **general, **values}.items() if key in names}
    return cls(index=index, file=file, **merged)


def _renamed(section: Any, where: str) -> Any:
    """The section with old key names replaced; the new name wins where both are given."""
    if not isinstance(section, dict):
        return section
    section = dict(section)
    for old, new in schema.RENAMED.items():
        if old not in section:
            continue
        value = section.pop(old)
        if new in section:
            logger.warning(f"{where}: {old} is ignored because {new} is given too")
        else:
            logger.warning(f"{where}: {old} is an old name; write {new}")
            section[new] = value
    return section


def _check(dataset: ImageDataset | VideoDataset) -> None:
    """Values that parse but cannot work, rejected here instead of hours later."""
    where = dataset.label
    if dataset.source is None:
        raise UserError(f"{where} has no media: give image_directory, image_jsonl_file, video_directory or video_jsonl_file")
    _ = dataset.cache_folder
    positive = {name: getattr(dataset, name) for name in ("batch_size", "num_repeats", "fp_latent_window_size")}
    if isinstance(dataset, VideoDataset):
        positive |= {"frame_stride": dataset.frame_stride, "frame_sample": dataset.frame_sample, "max_frames": dataset.max_frames}
        positive |= {"target_frames": min(dataset.target_frames, default=0)}
        if dataset.frame_extraction not in frames.MODES:
            raise UserError(f"{where}: frame_extraction {dataset.frame_extraction!r} is unknown; use one of {', '.join(frames.MODES)}")
        if dataset.source_fps is not None and not 0 < dataset.source_fps < float("inf"):
            raise UserError(f"{where}: source_fps must be above 0, not {dataset.source_fps}")
        if dataset.rules.targets != tuple(sorted(set(dataset.target_frames))):
            logger.warning(f"target_frames are rounded to {list(dataset.rules.targets)}")
        if dataset.frame_extraction != dataset.rules.effective_mode:
            logger.warning("frame_sample is set to 1 for frame_extraction=uniform. frame_extraction is changed to head.")
    largest = {key: getattr(dataset, key) for key in _LARGEST if getattr(dataset, key, None) is not None}
    for key, value in positive.items():
        if value < 1:
            raise UserError(f"{where}: {key} must be 1 or more")
    for key in ("fp_1f_clean_indices", "fp_1f_target_index"):  # places in a video
        value = getattr(dataset, key, None)
        if value is not None and min(value if isinstance(value, tuple) else (value,), default=0) < 0:
            raise UserError(f"{where}: {key} must be 0 or more")
    for key, value in largest.items():
        if max(map(abs, value), default=0) > _LARGEST[key] if isinstance(value, tuple) else value > _LARGEST[key]:
            raise UserError(f"{where}: {key} is {value}; it can be {_LARGEST[key]} at most")
    if min(dataset.resolution) < 16:
        raise UserError(f"{where}: resolution {list(dataset.resolution)} is too small; both sides must be at least 16 pixels")
    bucketed = dataset.enable_bucket or isinstance(dataset, VideoDataset)
    if not bucketed and any(side % _STEP for side in dataset.resolution):
        nearest = [max(1, round(side / _STEP)) * _STEP for side in dataset.resolution]
        raise UserError(
            f"{where}: resolution {list(dataset.resolution)} cannot be trained without buckets: both sides must be multiples of "
            f"{_STEP}; write {nearest}, or enable_bucket = true"
        )
    if bucketed and dataset.resolution[0] * dataset.resolution[1] < _SMALLEST_BUCKETED:
        raise UserError(f"{where}: resolution {list(dataset.resolution)} is too small for buckets; use at least [32, 32]")


def _refuse_shared_caches(config: DatasetConfig) -> None:
    seen: dict[Path, int] = {}
    for dataset in config.datasets:
        folder = dataset.cache_folder.resolve()
        if folder in seen:
            raise UserError(
                f"{config.path}: datasets[{seen[folder]}] and datasets[{dataset.index}] share the cache folder {folder}; "
                "give each its own cache_directory (without one, the folder of the media is used)"
            )
        seen[folder] = dataset.index
