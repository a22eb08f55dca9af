"""The keys a dataset file may hold and the types of their values: musubi-tuner 0.3.4's rules, and a key of our own (`OWN`).

Types are strict, with two kindnesses: booleans count as whole numbers (as in musubi-tuner), and a whole number is taken for
`source_fps` (musubi-tuner insists on `30.0`).
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from typing import Any

from ..errors import UserError

Check = Callable[[Any], Any]


class WrongType(Exception):
    """Raised by a check; its text says what was expected."""


def whole_number(value: Any) -> int:
    if not isinstance(value, int):
        raise WrongType("a whole number, like 8")
    return int(value)


def text(value: Any) -> str:
    if not isinstance(value, str):
        raise WrongType('text in quotes, like ".txt"')
    return value


def ending(value: Any) -> str:
    if not isinstance(value, str) or (value and "." not in value) or any(mark in value for mark in "/\\\0"):
        raise WrongType('an ending with its dot, like ".txt"')
    return value


def place(value: Any) -> str:
    if not isinstance(value, str) or not value.strip() or "\0" in value:
        raise WrongType('a path in quotes, like "/data/clips"')
    return value


def switch(value: Any) -> bool:
    if not isinstance(value, bool):
        raise WrongType("true or false")
    return value


def rate(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise WrongType("a number, like 30.0")
    return float(value)


def share(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
        raise WrongType("a share from 0 to 1, like 0.1")
    return float(value)


def whole_numbers(value: Any) -> tuple[int, ...]:
    if not isinstance(value, (list, tuple)) or not all(isinstance(n, int) for n in value):
        raise WrongType("a list of whole numbers, like [1, 25, 45]")
    return tuple(int(n) for n in value)


def size(value: Any) -> tuple[int, int]:
    if isinstance(value, int):
        return (int(value), int(value))
    if isinstance(value, (list, tuple)) and len(value) == 2 and all(isinstance(n, int) for n in value):
        return (int(value[0]), int(value[1]))
    raise WrongType("a whole number or [width, height] in whole numbers, like [960, 544]")


SHARED: dict[str, Check] = {
    "caption_extension": ending,
    "batch_size": whole_number,
    "num_repeats": whole_number,
    "resolution": size,
    "enable_bucket": switch,
    "bucket_no_upscale": switch,
    "validation_split": share,
}
OWN = ("validation_split",)
"""Keys that musubi-tuner does not know; this one and its meaning are sd-scripts'."""
IMAGE: dict[str, Check] = {
    **SHARED,
    "image_directory": place,
    "image_jsonl_file": place,
    "cache_directory": place,
    "control_directory": place,
    "multiple_target": switch,
    "fp_latent_window_size": whole_number,
    "fp_1f_clean_indices": whole_numbers,
    "fp_1f_target_index": whole_number,
    "fp_1f_no_post": switch,
    "no_resize_control": switch,
    "control_resolution": size,
}
VIDEO: dict[str, Check] = {
    **SHARED,
    "video_directory": place,
    "video_jsonl_file": place,
    "control_directory": place,
    "target_frames": whole_numbers,
    "frame_extraction": text,
    "frame_stride": whole_number,
    "frame_sample": whole_number,
    "max_frames": whole_number,
    "cache_directory": place,
    "source_fps": rate,
    "fp_latent_window_size": whole_number,
}
RENAMED = {
    "flux_kontext_no_resize_control": "no_resize_control",
    "qwen_image_edit_no_resize_control": "no_resize_control",
    "qwen_image_edit_control_resolution": "control_resolution",
}


def checked(section: Any, allowed: Mapping[str, Check], where: str) -> dict[str, Any]:
    """The values of one section, each of its type. UserError names `where`, the key, the value and what was expected."""
    if not isinstance(section, dict):
        raise UserError(f"{where} must be a table of keys and values, not {section!r}")
    values = {}
    for key, value in section.items():
        if key not in allowed:
            raise UserError(f"{where}: {_unknown(key, allowed)}")
        try:
            values[key] = allowed[key](value)
        except WrongType as wrong:
            raise UserError(f"{where}: {key} = {value!r} is not understood; expected {wrong}") from None
    return values


def _unknown(key: str, allowed: Mapping[str, Check]) -> str:
    message = f"unknown key {key!r}"
    if key == "datasets":
        return "datasets stands at the top of the file, not in a section: write [[datasets]] with two brackets"
    if key in IMAGE or key in VIDEO:
        kind = "a video dataset" if allowed is VIDEO else "[general]" if allowed is SHARED else "an image dataset"
        return f"{message}: it exists, but not in {kind}; move it to the dataset it belongs to, or remove it"
    close = difflib.get_close_matches(str(key), [*allowed], n=1)
    return f"{message}; did you mean {close[0]!r}?" if close else f"{message}; known here: {', '.join(sorted(allowed))}"
