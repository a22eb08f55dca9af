"""What a weight file is, read from the names and shapes in its header, so that a wrong file is rejected by name.

Standard library only: safetensors headers are JSON, and the names in a PyTorch file (.pt, .pth) are read from its pickle's
opcodes without executing it.
"""

from __future__ import annotations

import pickletools
import re
import zipfile
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from ..architectures import cards, part_of
from ..counted import counted
from ..errors import UserError
from . import kinds
from .kinds import Kind, Rule, Shapes
from .safetensors_file import PathLike, read_model_header, split_files

PREFIXES = (
    "model.diffusion_model.",
    "model.model.",
    "diffusion_model.",
    "first_stage_model.",
    "transformer.",
    "vae.",
    "text_encoders.",
    "module.",
)
PICKLE_SUFFIXES = (".pt", ".pth", ".ckpt", ".bin")


def recognise(path: PathLike) -> Kind | None:
    """What `path` (a safetensors or PyTorch file, or any part of a split model) is; None when its keys are not known.

    UserError when it cannot be read at all.
    """
    file_path = Path(path)
    if file_path.suffix.lower() in PICKLE_SUFFIXES:
        return kind_of(dict.fromkeys(pickle_names(file_path)))
    header = read_model_header(file_path)
    return kind_of(header.tensors, header.metadata)


def kind_of(shapes: Shapes, metadata: Mapping[str, str] | None = None) -> Kind | None:
    """As `recognise`, from names (and shapes, where known)."""
    special = _cache(shapes, metadata or {}) or _lora(shapes)
    if special is not None:
        return special
    for names in (shapes, *(_stripped(shapes, prefix) for prefix in PREFIXES)):
        for rule in rules():
            if all(name in names for name in rule.has) and not any(name in names for name in rule.lacks):
                return Kind(rule.id, rule.name, rule.detail(names) if rule.detail else "")
    return None


def refuse_others(path: PathLike, kind_ids: Sequence[str], flag: str) -> None:
    """UserError when `path` is known to be of a kind that is none of `kind_ids`, or cannot be read. Folders without an index, and files
    whose keys are not known, are left to those who load them."""
    if Path(path).is_dir() and split_files(path) == [Path(path)]:
        return
    kind = recognise(path)
    if kind is not None and kind.id not in kind_ids:
        raise UserError(f"{path} is a {kind}; {flag} expects a {_name(kind_ids[0])}")


def expect(path: PathLike, kind_id: str, flag: str) -> Kind:
    """The kind of `path` when its id is `kind_id`; else a UserError that says what the file is and what `flag` takes."""
    kind = recognise(path)
    if kind is not None and kind.id == kind_id:
        return kind
    if kind is None:
        raise UserError(f"{path} is not a known kind of model file; {flag} expects a {_name(kind_id)}. {_first_names(path)}")
    raise UserError(f"{path} is a {kind}; {flag} expects a {_name(kind_id)}")


def _name(kind_id: str) -> str:
    """What people call a kind."""
    return next((rule.name for rule in rules() if rule.id == kind_id), "LoRA" if kind_id == "lora" else kind_id)


def pickle_names(path: PathLike) -> list[str]:
    """The strings in the pickle of a PyTorch file, among them all tensor names. Nothing in it is executed."""
    try:
        with zipfile.ZipFile(path) as archive:
            entry = next(name for name in archive.namelist() if name.endswith("/data.pkl") or name == "data.pkl")
            return [arg for op, arg, _ in pickletools.genops(archive.read(entry)) if isinstance(arg, str) and "UNICODE" in op.name]
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except (zipfile.BadZipFile, StopIteration, ValueError, OSError) as error:
        raise UserError(f"{path} is not a readable PyTorch file ({error or 'no data.pkl'}); use a .safetensors file") from error


@lru_cache(maxsize=1)
def rules() -> tuple[Rule, ...]:
    """How the kinds of files are recognised; the first that fits counts. Those of architectures come first."""
    return (*(rule for module in _modules() for rule in module.RULES), *kinds.RULES)


@lru_cache(maxsize=1)
def _lora_patterns() -> tuple[tuple[str, str], ...]:
    return (*(pattern for module in _modules() for pattern in module.LORAS), *kinds.LORAS)


def _modules() -> list[Any]:
    """What the folders of architectures say of their files."""
    return [module for card_id in cards() if (module := part_of(card_id, "kinds")) is not None]


def _stripped(shapes: Shapes, prefix: str) -> Shapes:
    return {name.removeprefix(prefix): info for name, info in shapes.items() if name.startswith(prefix)}


def _cache(shapes: Shapes, metadata: Mapping[str, str]) -> Kind | None:
    architecture = metadata.get("architecture", "")
    if any(re.fullmatch(r"latents_\d+x\d+x\d+_\w+", name) for name in shapes):
        return Kind("latent_cache", "latent cache", architecture)
    if (architecture and "caption1" in metadata) or any(name.startswith(("varlen_", "llama_vec_", "llm_", "t5_vec_")) for name in shapes):
        return Kind("text_cache", "text encoder cache", architecture)
    return None


def _lora(shapes: Shapes) -> Kind | None:
    layouts = (
        ("musubi-tuner's layout", r"lora_unet_.*\.lora_down\.weight"),
        ("LoHa", r".*\.hada_w1_a"),
        ("LoKr", r".*\.lokr_w[12].*"),
        ("ComfyUI's layout", r"diffusion_model\..*\.(lora_A|lora_down)(\.[^.]+)?\.weight"),
        ("underscored names", r"[^.]*(lora|lycoris)_[^.]*\.lora_down\.weight"),
        ("diffusers' layout", r".*[._](lora_A|lora_down|lora\.down|lora_linear_layer\.down)(\.[^.]+){0,2}"),
        ("full differences", r".*\.(diff|diff_b|diff_m|w_norm)"),
    )
    for layout, pattern in layouts:
        if any(re.fullmatch(pattern, name) for name in shapes):
            for architecture, part in _lora_patterns():
                if any(re.search(part, name) for name in shapes):
                    return Kind("lora", "LoRA", f"{architecture}, {layout}")
            return Kind("lora", "LoRA", layout)
    return None


def _first_names(path: PathLike) -> str:
    file_path = Path(path)
    names = pickle_names(file_path) if file_path.suffix.lower() in PICKLE_SUFFIXES else list(read_model_header(file_path).tensors)
    return f"It holds {counted(len(names), 'tensor')}, such as {', '.join(names[:3])}." if names else "It holds no tensors."
