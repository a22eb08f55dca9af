"""Datasets: built from widgets, or read from an existing dataset file."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..backend.musubi_backend import content
from ..backend.musubi_backend.architectures import cards
from ..backend.musubi_backend.atomic import write_text
from ..backend.musubi_backend.documents import parse_json
from ..backend.musubi_backend.errors import UserError
from ..backend.musubi_backend.texts import read_text
from . import toml_text
from .families import titles
from .inspection import PLACES, inspect, places
from .jobs import guard
from .sizes import size_problems
from .spec import Host, Input, Node, NodeSpec, Output, Problem, Result, refused

DATASET = "MUSUBITUNER_DATASET"
_SOURCES = {
    "video folder": "video_directory",
    "image folder": "image_directory",
    "video JSONL": "video_jsonl_file",
    "image JSONL": "image_jsonl_file",
}
_EXTRACTIONS = ("head", "chunk", "slide", "uniform", "full")
_PATH_KEYS = re.compile(r"(image|video|control)_path.*")
_VIDEO = 2048
_WINDOW = 9  # the default of `fp_latent_window_size`
_SECTION_FAMILIES: dict[str, tuple[str, ...]] = {card.node_name: () for card in cards().values() if card.sections}
_SECTIONED = titles(card for card in cards().values() if card.sections)


_ON_BAD_ITEMS = Input(
    "on_bad_items",
    "COMBO",
    "What to do about clips and images that cannot be used: stop here with the list of them, or skip them, here and in caching.",
    default="stop",
    choices=("stop", "skip"),
)


def dataset_value(toml: Path, datasets: list[dict[str, Any]], on_bad_items: str = "stop") -> dict[str, Any]:
    """What a DATASET socket carries: the dataset file, what is in it, and what caching does about items that cannot be used."""
    return {"toml": str(toml), "datasets": datasets, "on_bad_items": on_bad_items}


class DatasetConfig(Node):
    spec = NodeSpec(
        id="MusubiTuner_DatasetConfig",
        display_name="Dataset Config",
        category="MusubiTuner/Dataset",
        description="Describe a folder (or list) of captioned clips or images for training. Chain several with `previous`. "
        "Writes the dataset file that musubi-tuner reads too, and lists every item that cannot be used with the reason.",
        inputs=(
            Input("source", "COMBO", "What `path` is: a folder of clips or images with captions next to them, or a JSONL file that "
                "lists them.",
                  default="video folder", choices=tuple(_SOURCES)),
            Input("path", "STRING", "The folder or the JSONL file. Relative paths start in ComfyUI's input folder, or else in this "
                "pack's home folder. It must lie in one of ComfyUI's "
                  "folders or one allowed in Settings, MusubiTuner.", default=""),
            Input("caption_extension", "STRING", "End of the caption files' names: clip.mp4 goes with clip.txt. Not used with "
                "JSONL.", default=".txt"),
            Input("width", "INT", "Width to train at; multiples of 16. With buckets, width times height is the "
                "area.", default=832, minimum=16, maximum=4096, step=16),
            Input("height", "INT", "Height to train at; multiples of 16.", default=480, minimum=16, maximum=4096, step=16),
            Input("batch_size", "INT", "Items that are trained at once. 1 needs the least memory.", default=1, minimum=1, maximum=256),
            Input("num_repeats", "INT", "How often each item comes in an epoch; gives small datasets more weight next to large "
                "ones.", default=1, minimum=1, maximum=10000),
            Input("enable_bucket", "BOOLEAN", "Keep each item's shape: it goes to the size of equal area that fits best, instead of "
                "being cropped to one size.", default=True),
            Input("bucket_no_upscale", "BOOLEAN", "Do not enlarge small items.", default=False),
            Input("target_frames", "STRING", "Lengths of the windows cut from clips, in frames: 4n+1 each, separated by commas. 1 "
                "trains single images.", default="1, 25, 45"),
            Input("frame_extraction", "COMBO", "Where windows are cut: head = the start; chunk = one after the other; slide = every "
                "frame_stride frames; "
                  "uniform = frame_sample places evenly spread; full = the whole clip up to "
                      "max_frames.", default="head", choices=_EXTRACTIONS),
            Input("frame_stride", "INT", "Distance of windows with slide, in frames.", default=1, minimum=1, maximum=1000, advanced=True),
            Input("frame_sample", "INT", "Number of windows per clip with uniform.", default=1, minimum=1, maximum=1000, advanced=True),
            Input("max_frames", "INT", "Longest window with full.", default=129, minimum=1, maximum=10000, advanced=True),
            Input("source_fps", "FLOAT", "Frames per second of the clips; they are converted to the model's. 0: take every frame as it is.",
                  default=0.0, minimum=0.0, maximum=1000.0, step=0.001, off=0.0, advanced=True),
            Input("cache_directory", "STRING", "Folder for the caches. Empty: one in this pack's home folder, by the settings "
                "above.", default="", advanced=True),
            Input("previous", DATASET, "Another dataset, to train on both.", optional=True),
            Input("control_directory", "STRING", "Folder with a control video or image of the same name for each item: for "
                "Fun-Control models and one-frame training.", default="", advanced=True),
            Input("one_frame_target_index", "INT", "One-frame training: at which index (of latent frames) the image to learn lies. "
                "-1: no one-frame training. Needs control images.", default=-1, minimum=-1, maximum=1000, advanced=True),
            Input("one_frame_control_indices", "STRING", "One-frame training: the indices of the control images, separated by commas, "
                "such as 0 or 0, 10.", default="", advanced=True),
            Input("one_frame_no_post", "BOOLEAN", f"One-frame training of {_SECTIONED}: without an empty frame after the last control "
                "image.", default=False, advanced=True, takers=_SECTION_FAMILIES),
            Input("latent_window_size", "INT", f"{_SECTIONED}: latent frames per section; 9 is what the model was made with.",
                  default=9, minimum=1, maximum=100, advanced=True, takers=_SECTION_FAMILIES),
            _ON_BAD_ITEMS,
            Input("validation_split", "FLOAT", "Share of these images or clips that are not trained on, for the validation loss; 1 holds "
                "out all of them. 0: what LoRA Training Config says.",
                  default=0.0, minimum=0.0, maximum=1.0, step=0.05, off=0.0, advanced=True, optional=True),
        ),
        outputs=(Output("dataset", DATASET, "For the caching nodes"), Output("toml", "STRING", "The dataset file as text"),
                 Output("report", "STRING", "What is in it, and what cannot be used and why")),
    )  # fmt: skip

    def validate(self, host: Host, **constants: Any) -> Iterator[Problem]:
        if "path" in constants:
            yield from refused("path", _source_path, host, constants["path"], constants.get("source", ""))
        if "target_frames" in constants:
            yield from refused("target_frames", _frames, constants["target_frames"])
        if not constants.get("caption_extension", ".txt").strip(" ."):
            yield Problem("caption_extension", "caption_extension is empty: write the end of the caption files' names, such as .txt")
        yield from size_problems(constants)
        yield from refused("one_frame_control_indices", _indices, constants.get("one_frame_control_indices", ""))
        if constants.get("control_directory"):
            yield from refused("control_directory", _control_directory, host, constants["control_directory"])
        if constants.get("cache_directory"):
            yield from refused("cache_directory", _chosen_cache, host, constants["cache_directory"])
        yield from _contradictions(constants)

    def fingerprint(self, host: Host, **constants: Any) -> str:
        if not constants.get("path"):
            return ""
        found = _content(_source_path(host, constants["path"], constants.get("source", "")))
        controls = constants.get("control_directory")
        return content.digest(found, content.of_folder(_control_directory(host, controls), deep=True)) if controls else found

    async def run(self, host: Host, **inputs: Any) -> Result:
        entry = _entry(host, inputs)
        earlier = inputs["previous"]["datasets"] if inputs["previous"] else []
        datasets = [*earlier, entry]
        caches = [one.get("cache_directory") for one in datasets]
        if len(set(caches)) < len(caches):
            raise UserError("the same dataset is chained twice (equal cache folders). To train it more often, raise num_repeats.")
        folder = host.home / "datasets" / content.digest(datasets)
        text = toml_text.dataset_file(datasets)
        folder.mkdir(parents=True, exist_ok=True)
        toml = folder / "dataset.toml"
        write_text(toml, text)
        report = await inspect(host, toml)
        if inputs["on_bad_items"] == "stop":
            report.refuse_bad_items(report.bad_items[-1:])  # those before it were the other node's to judge
        skips = "skip" in (inputs["on_bad_items"], (inputs["previous"] or {}).get("on_bad_items"))
        value = dataset_value(toml, datasets, "skip" if skips else "stop")
        return Result((value, text, report.text), text=report.summary, files=(toml,))


class DatasetConfigLoader(Node):
    spec = NodeSpec(
        id="MusubiTuner_DatasetConfigLoader",
        display_name="Dataset Config Loader",
        category="MusubiTuner/Dataset",
        description="Read an existing musubi-tuner dataset file (.toml or .json). It is checked, and every item that cannot be used "
            "is listed with the reason.",
        inputs=(
            Input("path", "STRING", "The dataset file. Relative paths start in ComfyUI's input folder, or else in this pack's home "
                "folder. It and the folders it names must lie in one of "
                  "ComfyUI's folders or one allowed in Settings, MusubiTuner.", default=""),
            _ON_BAD_ITEMS,
        ),
        outputs=(Output("dataset", DATASET, "For the caching nodes"), Output("report", "STRING", "What is in it, and what cannot be "
            "used and why")),
    )  # fmt: skip

    def validate(self, host: Host, **constants: Any) -> Iterator[Problem]:
        if "path" in constants:
            yield from refused("path", _config_path, host, constants["path"])

    def fingerprint(self, host: Host, **constants: Any) -> str:
        if not constants.get("path"):
            return ""
        path, roots = _config_path(host, constants["path"]), host.allowed_roots()
        named = {Path(name) for name in _strings(path)}
        return content.digest(content.stamp(path), [_content(one) for one in sorted(named) if guard.is_inside(one, roots)])

    async def run(self, host: Host, **inputs: Any) -> Result:
        path = _config_path(host, inputs["path"])
        roots = host.allowed_roots()
        for entry in await places(host, path):
            for key in PLACES:
                if entry.get(key):
                    guard.inside(str(entry[key]), roots, f"{path.name}: {key}", must_exist=False)
            if Path(entry["source"]).is_file():
                _guard_listed(host, Path(entry["source"]))
        report = await inspect(host, path)
        if inputs["on_bad_items"] == "stop":
            report.refuse_bad_items(report.bad_items)
        return Result((dataset_value(path, report.datasets, inputs["on_bad_items"]), report.text), text=report.summary)


def _entry(host: Host, inputs: dict[str, Any]) -> dict[str, Any]:
    """One `[[datasets]]` table."""
    key = _SOURCES[inputs["source"]]
    path = _source_path(host, inputs["path"], inputs["source"])
    if path.is_file():
        _guard_listed(host, path)
    entry: dict[str, Any] = {key: path.as_posix(), "resolution": [inputs["width"], inputs["height"]]}
    if path.is_dir():
        entry["caption_extension"] = f".{inputs['caption_extension'].strip().lstrip('.')}"
    entry |= {name: inputs[name] for name in ("batch_size", "num_repeats", "enable_bucket", "bucket_no_upscale")}
    if key.startswith("video"):
        entry |= {"target_frames": _frames(inputs["target_frames"])}
        entry |= {name: inputs[name] for name in ("frame_extraction", "frame_stride", "frame_sample", "max_frames")}
        if inputs["source_fps"]:
            entry["source_fps"] = inputs["source_fps"]
    if inputs["validation_split"]:
        entry["validation_split"] = inputs["validation_split"]
    entry |= _controls(host, inputs)
    entry["cache_directory"] = _cache_directory(host, inputs["cache_directory"], entry).as_posix()
    return entry


def _contradictions(constants: dict[str, Any]) -> Iterator[Problem]:
    """Half of what one-frame training and control media need; only where all of it is known."""
    needed = ("source", "control_directory", "one_frame_target_index", "one_frame_control_indices", "one_frame_no_post")
    if any(name not in constants for name in needed):
        return
    source, target = constants["source"], constants["one_frame_target_index"]
    if constants["control_directory"] and not source.endswith("folder"):
        said = "control_directory goes with a folder; in a JSONL list each line names its own control_path"
        yield Problem("control_directory", said)
    if target >= 0 and not source.startswith("image"):
        said = "one-frame training takes images: choose an image source, or set one_frame_target_index to -1"
        yield Problem("one_frame_target_index", said)
    given = [name for name in ("one_frame_control_indices", "one_frame_no_post") if constants[name] not in ("", False)]
    if target < 0 and given:
        said = f"{given[0]}: one-frame training needs one_frame_target_index, the index of the image to learn, such as 1"
        yield Problem(given[0], said)


def _controls(host: Host, inputs: dict[str, Any]) -> dict[str, Any]:
    """What steers the items: control media, and where in time the frames of one-frame training lie."""
    entry: dict[str, Any] = {}
    if inputs["control_directory"]:
        entry["control_directory"] = _control_directory(host, inputs["control_directory"]).as_posix()
    if inputs["latent_window_size"] != _WINDOW:
        entry["fp_latent_window_size"] = inputs["latent_window_size"]
    indices = _indices(inputs["one_frame_control_indices"])
    if inputs["one_frame_target_index"] < 0:
        return entry
    entry["fp_1f_target_index"] = inputs["one_frame_target_index"]
    if indices:
        entry["fp_1f_clean_indices"] = indices
    if inputs["one_frame_no_post"]:
        entry["fp_1f_no_post"] = True
    return entry


def _indices(text: str) -> list[int]:
    try:
        return [int(part) for part in text.replace(";", ",").split(",") if part.strip()]
    except ValueError:
        raise UserError(f"one_frame_control_indices: {text!r} is not a list of whole numbers such as 0, 10") from None


def _control_directory(host: Host, text: str) -> Path:
    path = guard.inside(text, host.allowed_roots(), "control_directory", relative_to=(host.input_dir, host.home))
    if not path.is_dir():
        raise UserError(f"control_directory: {path} is not a folder")
    return path


def _cache_directory(host: Host, chosen: str, entry: dict[str, Any]) -> Path:
    if chosen.strip():
        return _chosen_cache(host, chosen)
    same = {name: value for name, value in entry.items() if name not in ("batch_size", "num_repeats", "validation_split")}
    return host.home / "datasets" / content.digest(same) / "cache"


def _chosen_cache(host: Host, text: str) -> Path:
    return guard.inside(text, host.allowed_roots(), "cache_directory", relative_to=(host.home,), must_exist=False)


def _source_path(host: Host, text: str, source: str) -> Path:
    path = guard.inside(text, host.allowed_roots(), "path", relative_to=(host.input_dir, host.home))
    if source.endswith("folder") and not path.is_dir():
        raise UserError(f"path: {path} is not a folder; choose a JSONL source to use a list")
    if source.endswith("JSONL") and not path.is_file():
        raise UserError(f"path: {path} is not a file")
    return path


def _config_path(host: Host, text: str) -> Path:
    path = guard.inside(text, host.allowed_roots(), "path", relative_to=(host.input_dir, host.home))
    if path.suffix.lower() not in (".toml", ".json"):
        raise UserError(f"path: {path.name} is not a dataset file; it must end in .toml or .json")
    return path


def _frames(text: str) -> list[int]:
    try:
        frames = [int(part) for part in text.replace(";", ",").split(",") if part.strip()]
    except ValueError:
        raise UserError(f"target_frames: {text!r} is not a list of whole numbers such as 1, 25, 45") from None
    if not frames or min(frames) < 1 or max(frames) > _VIDEO:
        raise UserError(f"target_frames: {text!r} must hold at least one number from 1 to {_VIDEO}")
    return frames


def _strings(path: Path) -> list[str]:
    """What stands in quotes in a dataset file, among it all folders."""
    try:
        text = read_text(path)
    except ValueError:
        return []  # whoever reads the file says so
    found = re.findall(r""" "([^"\n\0]+)" | '([^'\n\0]+)' """, text, re.VERBOSE)
    return [literal or basic.replace("\\\\", "\\") for basic, literal in found]


def _content(path: Path) -> str:
    """Changes with the files in a folder, or with a list and the files that it names."""
    if path.is_dir():
        return content.of_folder(path, deep=True)
    listed = _listed(path) if path.suffix == ".jsonl" and path.is_file() else []
    folders = [content.of_folder(one) for one in listed if one.is_dir()]  # clips that are folders of images
    return content.digest(content.of_files([path, *listed]), folders)


def _listed(path: Path) -> list[Path]:
    """Every file that a JSONL list names. UserError names the line that is not JSON."""
    try:
        text = read_text(path)
    except ValueError as error:
        raise UserError(f"{path} is {error}") from None
    found = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            record = parse_json(line, object, paths=True)
        except ValueError as error:
            raise UserError(f"{path}, line {number} is not JSON: {error}") from error
        if not isinstance(record, dict):
            raise UserError(f"{path}, line {number} must be an object with a path and a caption")
        found += [Path(str(value)) for name, value in record.items() if value and _PATH_KEYS.fullmatch(name)]
    return found


def _guard_listed(host: Host, path: Path) -> None:
    roots = host.allowed_roots()
    for item in _listed(path):
        if not item.is_absolute():
            raise UserError(f"{path.name} names {item}: write whole paths in a list, such as {path.parent / item}")
        guard.inside(str(item), roots, f"an entry of {path.name}", must_exist=False)
