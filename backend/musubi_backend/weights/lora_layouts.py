"""LoRA files in every layout people have, read as adapters of named layers, and written in the layout one wants.

Layouts: musubi-tuner and kohya (`lora_unet_blocks_0_ffn_0.lora_down.weight`), LyCORIS (`lycoris_...`, LoHa, LoKr), OneTrainer
(`lora_transformer_...`), and dotted ones with or without a prefix: ComfyUI, diffusion-pipe and ai-toolkit (`diffusion_model.`), diffusers
(`transformer.`), PEFT (`base_model.model.`), DiffSynth (none). Layer names are those of `lora_names`. numpy, no torch.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from ..errors import UserError
from . import lora_names, lora_parts
from .arrays import TensorFile
from .lora_names import FRAMEPACK, HUNYUAN, HUNYUAN_COMFY, QWEN_IMAGE, WAN, WAN_DIFFUSERS, Found
from .lora_parts import ALPHA, DOWN, LORA, UP, Adapter, Part
from .safetensors_file import PathLike

MUSUBI_PREFIX = "lora_unet_"
COMFY_PREFIX = "diffusion_model"

_KEY = re.compile(
    r"(?P<path>.+?)\.(?P<part>lora_A|lora_B|lora_down|lora_up|lora\.down|lora\.up|lora_magnitude_vector|alpha|dora_scale|diff|diff_b"
    r"|(?:hada|lokr)_[wt][12](?:_[ab])?)(?:\.default(?:_\d+)?)?(?:\.weight)?"
)
_PARTS = {"lora_A": DOWN, "lora_down": DOWN, "lora.down": DOWN, "lora_B": UP, "lora_up": UP, "lora.up": UP,
          "lora_magnitude_vector": "dora_scale"}  # fmt: skip
_UNDERSCORED = re.compile(r"(?P<prefix>lora_unet__?|lycoris_|lora_transformer_)(?P<path>[^.]+)")
_DOTTED = re.compile(
    r"(?P<prefix>(?:base_model\.model\.)?(?:model\.diffusion_model\.|diffusion_model\.|transformer\.|unet\.|pipe\.dit\.)?)(?P<path>.+)"
)
_PEFT_METADATA = "lora_adapter_metadata"
_NATIVE = {WAN: WAN, WAN_DIFFUSERS: WAN, HUNYUAN: HUNYUAN, HUNYUAN_COMFY: HUNYUAN, FRAMEPACK: FRAMEPACK, QWEN_IMAGE: QWEN_IMAGE}


@dataclass(frozen=True)
class Layer:
    """An adapter and the layer it is for. path: as written, dotted or underscored; found: which layer that is, if known."""

    path: str
    found: Found | None
    adapter: Adapter

    @property
    def dotted(self) -> str:
        """The path with dots, in the file's own naming."""
        if "." in self.path:
            return self.path
        return lora_names.names_of(self.found.place, self.found.naming)[0] if self.found else lora_names.dotted(self.path)


@dataclass
class LoRAFile:
    """An opened LoRA file: its layers, what it was recognised as, and the tensors that belong to no known layer.

    Tensors are read when they are made. UserError for files that are no safetensors, hold no LoRA, or whose factors do not fit.
    """

    file: TensorFile
    layers: list[Layer] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    prefixes: Counter[str] = field(default_factory=Counter)

    @classmethod
    def open(cls, path: PathLike) -> LoRAFile:
        lora = cls(TensorFile(path))
        try:
            lora._read_names()
        except UserError:
            lora.close()
            raise
        return lora

    def _read_names(self) -> None:
        groups: dict[tuple[str, str], dict[str, str]] = {}
        known = lora_names.architecture_naming(self.metadata) != ""
        for key in self.file.tensors:
            named = _parse(key)
            if named is None:
                self.left.append(key)
                continue
            prefix, layer_path, part = named
            groups.setdefault((prefix, layer_path), {})[part] = key
        for (prefix, layer_path), keys in groups.items():
            self._add(prefix, layer_path, keys, known)
        if not self.layers:
            count, example = len(self.file.tensors), f" ({self.left[0]})" if self.left else ""
            raise UserError(f"{self.file.path} holds no LoRA: none of its {count} tensors is named like one{example}")

    @property
    def metadata(self) -> dict[str, str]:
        return self.file.header.metadata

    @property
    def kinds(self) -> Counter[str]:
        """How many layers have a LoRA, a LoHa, a LoKr or a full difference."""
        return Counter(layer.adapter.kind for layer in self.layers)

    @property
    def namings(self) -> Counter[str]:
        """How many layers are named in which way; "" counts those that no table has."""
        return Counter(layer.found.naming if layer.found else "" for layer in self.layers)

    @property
    def native(self) -> str:
        """The naming of the architecture it was made for; "" when it is unknown.

        diffusers' names of HunyuanVideo are FramePack's: those count as FramePack's unless the metadata says HunyuanVideo.
        """
        said = lora_names.architecture_naming(self.metadata)
        found = self.namings
        if said == "" or not any(found[naming] for naming in _NATIVE):
            return ""
        if found[QWEN_IMAGE]:
            return QWEN_IMAGE
        native = _NATIVE[max((naming for naming in found if naming), key=lambda naming: found[naming])]
        return HUNYUAN if native == FRAMEPACK and said == HUNYUAN else native

    @property
    def expects_alphas(self) -> bool:
        """Whether it is in musubi-tuner's layout, in which every LoRA ought to have an alpha."""
        return self.prefixes.most_common(1)[0][0].startswith(MUSUBI_PREFIX)

    @property
    def title(self) -> str:
        """Layout, architecture and kind in words, for reports."""
        kinds = " and ".join(sorted(kind for kind in self.kinds if kind))
        naming = max(self.namings, key=lambda name: self.namings[name])
        model = lora_names.NAMING_TITLES.get(naming, "unknown architecture") if self.native else "unknown architecture"
        return f"{self._layout()}; {model}; {kinds}"

    def close(self) -> None:
        self.file.close()

    def _layout(self) -> str:
        prefix = self.prefixes.most_common(1)[0][0]
        if prefix.startswith("lora_unet"):
            return "musubi-tuner" if lora_names.architecture_naming(self.metadata) or set(self.kinds) <= {LORA} else "LyCORIS"
        software = self.metadata.get("software", "") + " ".join(self.metadata)
        if prefix == "lora_transformer_" or "ot_branch" in self.metadata:
            return "OneTrainer"
        if "ai-toolkit" in software:
            return "ai-toolkit"
        if prefix == "transformer." and self.namings[HUNYUAN]:
            return "diffusion-pipe"
        titles = {"lycoris_": "LyCORIS", "diffusion_model.": "ComfyUI (diffusion-pipe, ai-toolkit)", "transformer.": "diffusers",
                  "": "DiffSynth (no prefix)"}  # fmt: skip
        return titles.get(prefix, f"PEFT ({prefix}…)" if "base_model" in prefix else prefix)

    def _add(self, prefix: str, path: str, keys: Mapping[str, str], known: bool) -> None:
        parts = {part: lora_parts.read(self.file, key) for part, key in keys.items()}
        source = f"{self.file.path}: {next(iter(keys.values())).rpartition('.')[0]}"
        alpha = self.file.number(keys[ALPHA]) if ALPHA in keys else self._peft_alpha(path)
        if alpha is not None and ALPHA not in parts:
            parts[ALPHA] = lora_parts.number(alpha, "F32")
        adapter = Adapter(parts, source, alpha)
        found = lora_names.find(path) if known else None
        if not adapter.kind or (not prefix and found is None):
            self.left += keys.values()
            return
        adapter.check()
        self.prefixes[prefix] += 1
        self.layers.append(Layer(path, found, adapter))

    def _peft_alpha(self, path: str) -> float | None:
        """The alpha that diffusers keeps in the metadata (`lora_adapter_metadata`); None without."""
        text = self.metadata.get(_PEFT_METADATA)
        if text is None:
            return None
        try:
            values = {key.removeprefix("transformer."): value for key, value in json.loads(text).items()}
            alpha = next((a for name, a in (values.get("alpha_pattern") or {}).items() if re.fullmatch(rf"(.*\.)?{name}", path)), None)
            return float(values["lora_alpha"] if alpha is None else alpha)
        except (ValueError, TypeError, AttributeError, KeyError, re.error):
            return None


def arranged(lora: LoRAFile, naming: str) -> Iterator[tuple[str, Adapter]]:
    """(dotted path, adapter) of each layer as `naming` has the layers: fused ones are split, parts are fused, exactly.

    Layers that `naming` does not know keep their own path. UserError for a LoKr that cannot be split or fused.
    """
    waiting: dict[str, list[Adapter | None]] = {}
    for layer in lora.layers:
        found = layer.found
        if found is None or not lora_names.has_naming(found.place, naming):
            yield layer.dotted, layer.adapter
            continue
        names = lora_names.names_of(found.place, naming)
        if lora_names.is_fused(found.place, naming):
            parts = waiting.setdefault(names[0], [None] * lora_names.parts_of(found.place))
            parts[found.place.part or 0] = layer.adapter
        elif len(names) > 1:
            yield from zip(names, lora_parts.split(layer.adapter, len(names)), strict=True)
        else:
            yield names[0], layer.adapter
    for path, adapters in waiting.items():
        first = next(adapter for adapter in adapters if adapter is not None)
        yield path, lora_parts.fuse(adapters, first.source)


def musubi_tensors(path: str, adapter: Adapter) -> Iterator[tuple[str, Part]]:
    """(name, tensor) of one layer in musubi-tuner's layout. A LoRA without alpha gets its rank as a whole number, as there."""
    name = MUSUBI_PREFIX + path.replace(".", "_")
    for part, tensor in adapter.parts.items():
        yield f"{name}.{part}", tensor
    if adapter.kind == LORA and ALPHA not in adapter.parts:
        yield f"{name}.{ALPHA}", lora_parts.number(adapter.rank, "I64")


def comfy_tensors(path: str, adapter: Adapter, prefix: str = COMFY_PREFIX) -> Iterator[tuple[str, Part]]:
    """(name, tensor) of one layer with dots and lora_A / lora_B, whose layout has no alpha: its share of the scale goes into the
    factors, the root into each. Other kinds keep their parts."""
    if adapter.kind != LORA:
        for part, tensor in adapter.parts.items():
            yield f"{prefix}.{path}.{part}", tensor
        return
    alpha = adapter.parts.get(ALPHA)
    for part, tensor in adapter.parts.items():
        if part in (DOWN, UP):
            root = lora_parts.split_scale(alpha, adapter.rank) if alpha else 1.0
            yield f"{prefix}.{path}.{'lora_A' if part == DOWN else 'lora_B'}.weight", lora_parts.scaled(tensor, root)
        elif part != ALPHA:
            yield f"{prefix}.{path}.{part}", tensor


def _parse(key: str) -> tuple[str, str, str] | None:
    """(prefix, path of the layer, part) of a tensor's name; None for names of other things."""
    match = _KEY.fullmatch(key.replace("$$", "."))
    if match is None:
        return None
    part = _PARTS.get(match["part"], match["part"])
    underscored = _UNDERSCORED.fullmatch(match["path"])
    if underscored is not None:
        return underscored["prefix"], underscored["path"], part
    dotted = _DOTTED.fullmatch(match["path"])
    if dotted is None or "." not in dotted["path"]:
        return (dotted["prefix"], dotted["path"], part) if dotted and dotted["prefix"] else None
    return dotted["prefix"], dotted["path"], part
