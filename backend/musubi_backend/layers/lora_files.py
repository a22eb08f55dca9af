"""LoRA files: reading the layouts people have, merging them into weights as they are loaded, writing ComfyUI's layout.

Layouts: musubi-tuner (`lora_unet_blocks_0_ffn_0.lora_down.weight`), and dotted ones with the prefix `diffusion_model.`
(ComfyUI) or `transformer.` (diffusers), whose factors are called lora_A/lora_B or lora_down/lora_up.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from ..errors import UserError
from ..weights.recognise import recognise
from ..weights.safetensors_file import load
from .lora import PREFIX, adapter_name

logger = logging.getLogger(__name__)

_DOTTED = re.compile(
    r"(?:base_model\.model\.)?(?:diffusion_model|transformer)\.(?P<path>.+?)"
    r"\.(?P<part>lora_A|lora_B|lora_down|lora_up|alpha)(?:\.default)?(?:\.weight)?"
)
_PARTS = {
    "lora_A": "lora_down.weight",
    "lora_down": "lora_down.weight",
    "lora_B": "lora_up.weight",
    "lora_up": "lora_up.weight",
    "alpha": "alpha",
}
_COMPOUNDS = (
    (r"\b(self|cross)\.attn\b", r"\1_attn"),
    (r"\b(k|v)\.img\b", r"\1_img"),
    (r"\b(double|single)\.blocks\b", r"\1_blocks"),
    (r"\b(img|txt)\.(mlp|mod)\b", r"\1_\2"),
    (r"\b(img|txt)\.attn\.", r"\1_attn_"),
)


def read_lora(path: str | Path, rename: Callable[[str], str] | None = None) -> dict[str, Tensor]:
    """The tensors of a LoRA file with musubi-tuner's names. Tensors of unknown meaning keep their names.

    rename: dotted module path in the file -> path in our model. UserError when the file is no LoRA, or a kind that is not a
    product of two matrices.
    """
    kind = recognise(path)
    if kind is None or kind.id != "lora":
        raise UserError(f"{path} is {'not a known kind of file' if kind is None else f'a {kind}'}; a LoRA file is expected")
    if "LoHa" in kind.detail or "LoKr" in kind.detail:
        raise UserError(f"{path} is a {kind}; LoHa and LoKr cannot be merged yet")
    state = {}
    for name, tensor in load(path).items():
        match = _DOTTED.fullmatch(name)
        if match is not None:
            path_in_model = rename(match["path"]) if rename else match["path"]
            name = f"{adapter_name(path_in_model)}.{_PARTS[match['part']]}"
        state[name] = tensor
    return state


@dataclass
class LoRAMerge:
    """Adds LoRA files to weights while they are loaded (`weights.loader.load_into(transform=...)`).

    The arithmetic is musubi-tuner's: W + multiplier * (up @ down) * (alpha / rank), in the wider of the two dtypes; the loader
    then casts to the model's dtype.
    """

    files: Sequence[str | Path]
    multipliers: Sequence[float] = ()
    include_patterns: Sequence[str | None] = ()
    exclude_patterns: Sequence[str | None] = ()
    rename: Callable[[str], str] | None = None
    _states: list[dict[str, Tensor]] = field(default_factory=list)

    def __post_init__(self) -> None:
        for index, path in enumerate(self.files):
            try:
                kept = _filtered(read_lora(path, self.rename), _at(self.include_patterns, index), _at(self.exclude_patterns, index))
            except re.error as error:
                raise UserError(f"--include_patterns or --exclude_patterns {index + 1} is no regular expression: {error}") from error
            if not kept:
                raise UserError(f"{path}: the include and exclude patterns leave nothing of this LoRA")
            self._states.append(kept)

    def check(self, names: Collection[str]) -> None:
        """Compare with the model's tensor names before anything is loaded. UserError when a file fits nothing; what is left
        over in a fitting file is a warning."""
        usable = {adapter_name(name.removesuffix(".weight")) for name in names if name.endswith(".weight")}
        for path, state in zip(self.files, self._states, strict=True):
            unused = [key for key in state if key.partition(".")[0] not in usable]
            if len(unused) == len(state):
                raise UserError(f"{path} is a {recognise(path)} and fits no layer of this model; its keys are like {next(iter(state))}")
            if unused:
                logger.warning("Warning: not all LoRA keys are used: %s: %s", path, ", ".join(unused))

    def __call__(self, name: str, weight: Tensor) -> Tensor:
        """`name` is the tensor's name in the model."""
        if not name.endswith(".weight"):
            return weight
        adapter = adapter_name(name.removesuffix(".weight"))
        for index, state in enumerate(self._states):
            if f"{adapter}.lora_down.weight" in state and f"{adapter}.lora_up.weight" in state:
                multiplier = self.multipliers[index] if index < len(self.multipliers) else 1.0
                weight = _merged(weight, state, adapter, multiplier)
        return weight


def to_comfy_layout(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """musubi-tuner's layout -> `diffusion_model.{path}.lora_A.weight` / `lora_B.weight`.

    alpha / rank goes into the factors, its root into each. ComfyUI loads musubi-tuner's own names as well; this is for
    programs that do not.
    """
    result = {}
    for key, tensor in state.items():
        adapter, _, part = key.partition(".")
        if not adapter.startswith(PREFIX) or part not in ("lora_down.weight", "lora_up.weight"):
            continue
        down, alpha = state[f"{adapter}.lora_down.weight"], state.get(f"{adapter}.alpha")
        root = 1.0 if alpha is None else (float(alpha) / down.shape[0]) ** 0.5
        result[f"diffusion_model.{dotted_path(adapter)}.{'lora_A' if part.startswith('lora_down') else 'lora_B'}.weight"] = tensor * root
    return result


def dotted_path(adapter: str) -> str:
    """Adapter name -> module path in the original layouts: "lora_unet_blocks_0_self_attn_q" -> "blocks.0.self_attn.q"."""
    path = adapter.removeprefix(PREFIX).replace("_", ".")
    for pattern, name in _COMPOUNDS:
        path = re.sub(pattern, name, path)
    return path


def _merged(weight: Tensor, state: Mapping[str, Tensor], adapter: str, multiplier: float) -> Tensor:
    down = state[f"{adapter}.lora_down.weight"].to(weight.device)
    up = state[f"{adapter}.lora_up.weight"].to(weight.device)
    rank = down.shape[0]
    if weight.ndim != 2 or up.shape[0] != weight.shape[0] or down.flatten(1).shape[1] != weight.shape[1]:
        raise UserError(
            f"{adapter} of the LoRA changes a matrix of {up.shape[0]}x{down[0].numel()}, and the model's is {list(weight.shape)}: "
            "it was trained on another model"
        )
    scale = state.get(f"{adapter}.alpha", rank) / rank
    return weight + multiplier * (up.flatten(1) @ down.flatten(1)) * scale


def _filtered(state: dict[str, Tensor], include: str | None, exclude: str | None) -> dict[str, Tensor]:
    kept = state
    if include:
        kept = {key: tensor for key, tensor in kept.items() if re.search(include, key)}
    if exclude:
        kept = {key: tensor for key, tensor in kept.items() if not re.search(exclude, key)}
    return kept


def _at(patterns: Sequence[str | None], index: int) -> str | None:
    return patterns[index] if index < len(patterns) else None
