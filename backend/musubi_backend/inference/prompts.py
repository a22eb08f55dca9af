"""Prompt lines ("a dog --w 832 --h 480 --d 7") and prompt files, as musubi-tuner writes them.

A line is the prompt, then options, each " --name value". The names are matched without case; `generate` reads "--g" and
"--l" as one setting, training samples tell the model's own guidance ("--g") from classifier-free guidance ("--l").
Training samples also come from TOML (`[prompt]` defaults, `[[prompt.subset]]`) and JSON (a list), with the long names.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..architectures.request import LineOption
from ..documents import parse_json, parse_toml
from ..errors import UserError
from ..texts import read_text

if TYPE_CHECKING:
    from ..architectures.protocol import Architecture
    from ..architectures.request import SampleRequest

SEEDS = 2**32  # a seed nobody chose is below this


_COMMON = {
    "w": LineOption("width", int, 16, 8192),
    "h": LineOption("height", int, 16, 8192),
    "f": LineOption("frame_count", int, 1, 10000),
    "d": LineOption("seed", int, 0, 2**64 - 1),
    "s": LineOption("sample_steps", int, 1, 1000),
    "g": LineOption("guidance_scale", float, 0),
    "fs": LineOption("discrete_flow_shift", float, 0.01),
    "l": LineOption("cfg_scale", float, 0),
    "n": LineOption("negative_prompt"),
    "i": LineOption("image_path"),
    "ei": LineOption("end_image_path"),
    "cn": LineOption("control_video_path"),
    "ci": LineOption("control_image_path", several=True),
    "of": LineOption("one_frame"),
}
TRAINING_OPTIONS: Mapping[str, LineOption] = _COMMON
GENERATE_OPTIONS: Mapping[str, LineOption] = {
    **_COMMON,
    "l": _COMMON["g"],
    "cim": LineOption("control_image_mask_path", several=True),
    "lw": LineOption("lora_weight"),
    "lwh": LineOption("lora_weight_high_noise"),
    "lm": LineOption("lora_multiplier", float, -100, 100),
}


@dataclass(frozen=True)
class TrainingPrompt:
    """One sample to make during training. seed_given: only then the seed is part of the file name (and stays the same over
    several runs)."""

    index: int
    request: SampleRequest
    seed_given: bool


def parse_line(line: str, options: Mapping[str, LineOption], where: str) -> dict[str, Any]:
    """The settings of one line under their long names, "prompt" always among them; the last of equal options counts.

    where: how to call the line in errors, for example "prompts.txt line 3". Raises UserError for an unknown or rejected
    option and for a value that does not fit.
    """
    if line.lstrip().startswith("--"):
        raise UserError(f"{where}: starts with an option; write the prompt first, then the options")
    prompt, *parts = line.strip().split(" --")
    values: dict[str, Any] = {"prompt": prompt.strip()}
    for part in parts:
        name, _, text = part.strip().partition(" ")
        option = options.get(name.lower())
        if option is None:
            known = " ".join(f"--{known}" for known, option in options.items() if not option.unsupported)
            raise UserError(f'{where}: unknown option "--{name}"; known are {known}')
        value = _value(option, text.strip(), f"{where}: --{name}")
        values[option.key] = (*values.get(option.key, ()), value) if option.several else value
    return values


def read_lines(path: str | Path) -> list[tuple[int, str]]:
    """Numbered lines of a text file without blank lines and "#" comments. UserError where it cannot be read or is empty."""
    lines = [(number, line.strip()) for number, line in enumerate(_read(path).splitlines(), start=1)]
    lines = [(number, line) for number, line in lines if line and not line.startswith("#")]
    if not lines:
        raise UserError(f"{path}: no prompts in this file; write one prompt per line")
    return lines


def training_prompts(path: str | Path, architecture: Architecture) -> list[TrainingPrompt]:
    """The samples described by a .txt, .toml or .json file, with musubi-tuner's defaults for what they leave out.

    Sizes are floored to what the model can do, frames to the card's stride plus one. All bad entries are named in one UserError.
    """
    prompts, problems = [], []
    for index, (where, entry) in enumerate(_entries(path)):
        try:
            values = parse_line(entry, TRAINING_OPTIONS, where) if isinstance(entry, str) else _checked(entry, where)
            prompts.append(_training_prompt(index, values, architecture))
        except UserError as error:
            problems.append(str(error))
    if problems:
        raise UserError("\n".join(problems))
    return prompts


def _training_prompt(index: int, values: Mapping[str, Any], architecture: Architecture) -> TrainingPrompt:
    from ..architectures.request import Guidance, Images, SampleRequest

    card, task = architecture.card, architecture.task
    step = card.spatial_compression * 2  # every supported model patches its latents by 2x2
    frames = values.get("frame_count", 1)
    negative = values.get("negative_prompt", task.negative_prompt or card.negative_prompt or None)
    seed = values.get("seed")
    request = SampleRequest(
        prompt=values.get("prompt", ""),
        negative_prompt=negative or "",
        width=max(step, values.get("width", 256) // step * step),
        height=max(step, values.get("height", 256) // step * step),
        frames=(frames - 1) // card.frame_stride * card.frame_stride + 1,
        steps=values.get("sample_steps", 20),
        guidance=Guidance(1.0 if negative is None else values.get("cfg_scale", task.guidance_scale)),
        flow_shift=values.get("discrete_flow_shift", 14.5),
        seed=secrets.randbelow(SEEDS) if seed is None else seed,
        images=Images(
            start=values.get("image_path"),
            end=values.get("end_image_path"),
            control_video=values.get("control_video_path"),
            controls=values.get("control_image_path", ()),
        ),
        embedded_guidance=values.get("guidance_scale", card.embedded_guidance),
        one_frame=values.get("one_frame"),
        fixed_size=True,
    )
    return TrainingPrompt(index, architecture.fitted_sample(request), seed is not None)


def _entries(path: str | Path) -> list[tuple[str, Any]]:
    """(where, line or table) for each prompt of a file."""
    suffix = Path(path).suffix.lower()
    if suffix == ".txt":
        return [(f"{path} line {number}", line) for number, line in read_lines(path)]
    if suffix == ".json":
        try:
            found = parse_json(_read(path), object)
        except json.JSONDecodeError as error:
            raise UserError(f"{path} line {error.lineno}: not valid JSON ({error.msg})") from error
        except ValueError as error:
            raise UserError(f"{path}: not valid JSON ({error})") from error
    elif suffix == ".toml":
        found = _toml_prompts(path)
    else:
        raise UserError(f'{path}: prompt files end in .txt, .toml or .json, not "{suffix}"')
    if not isinstance(found, list) or not found:
        raise UserError(f"{path}: expected a list of prompts")
    return [(f"{path} prompt {number}", entry) for number, entry in enumerate(found, start=1)]


def _toml_prompts(path: str | Path) -> list[Any]:
    try:
        table = parse_toml(_read(path)).get("prompt")
    except ValueError as error:
        raise UserError(f"{path}: not valid TOML ({error})") from error
    subsets = table.get("subset") if isinstance(table, dict) else None
    if not isinstance(table, dict) or not isinstance(subsets, list) or not all(isinstance(subset, dict) for subset in subsets):
        raise UserError(f"{path}: expected a [prompt] table with one [[prompt.subset]] per prompt")
    defaults = {key: value for key, value in table.items() if key != "subset"}
    return [{**defaults, **subset} for subset in subsets]


def _checked(entry: Any, where: str) -> dict[str, Any]:
    """A TOML or JSON table with its values checked; "enum" is musubi-tuner's own counter and means nothing."""
    if not isinstance(entry, dict):
        raise UserError(f"{where}: expected a line of text or a table, found {type(entry).__name__}")
    by_key = {option.key: option for option in TRAINING_OPTIONS.values()} | {"prompt": LineOption("prompt")}
    values = {}
    for key, value in entry.items():
        if key == "enum":
            continue
        if key not in by_key:
            known = ", ".join(key for key, option in by_key.items() if not option.unsupported)
            raise UserError(f'{where}: unknown key "{key}"; known are {known}')
        if by_key[key].several:
            values[key] = tuple(_value(by_key[key], str(one), f"{where}: {key}") for one in (value if isinstance(value, list) else [value]))
            continue
        if isinstance(value, (dict, list, bool)) or (by_key[key].kind is not str and isinstance(value, str)):
            raise UserError(f"{where}: {key}: {value!r} is not {_kind_name(by_key[key].kind)}")
        values[key] = _value(by_key[key], str(value), f"{where}: {key}")
    return values


def _value(option: LineOption, text: str, where: str) -> Any:
    if option.unsupported:
        raise UserError(f"{where}: cannot be used here; {option.unsupported}")
    if option.kind is str:
        return text
    try:
        value = option.kind(text)
    except ValueError:
        raise UserError(f'{where}: "{text}" is not {_kind_name(option.kind)}') from None
    low, high = option.minimum, option.maximum
    if not (low is None or value >= low) or not (high is None or value <= high) or value in (float("inf"), float("-inf")):
        wanted = f"from {low} to {high}" if high is not None else f"at least {low}"
        raise UserError(f"{where}: {text} is out of range; it must be {wanted}")
    return value


def _kind_name(kind: type) -> str:
    return {int: "a whole number", float: "a number", str: "text"}[kind]


def _read(path: str | Path) -> str:
    try:
        return read_text(Path(path))
    except FileNotFoundError:
        raise UserError(f"{path}: no such prompt file") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot read this prompt file ({error})") from error
