"""LoRA files in every layout people have, read as LoRA weights of named layers, and written in the layout one wants.

Layouts: musubi-tuner and kohya (`lora_unet_blocks_0_ffn_0.lora_down.weight`), LyCORIS (`lycoris_...`, LoHa, LoKr), OneTrainer
(`lora_transformer_...`), and dotted ones with or without a prefix: ComfyUI, diffusion-pipe and ai-toolkit (`diffusion_model.`), diffusers
(`transformer.`), PEFT (`base_model.model.`), DiffSynth (none). Names are read by `tensor_names`. numpy, no torch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from ..errors import UserError
from ..weights.arrays import TensorFile
from ..weights.safetensors_file import PathLike
from . import layer_names, strangers, tensor_names
from .layer_names import Found
from .parts import LoRAWeights, Part, fuse, fusible, number, placed, read, scaled, split, split_scale, usual, with_dimensions
from .peft import PeftAlphas
from .shapes import ALPHA, DORA, DOWN, LORA, UP
from .tensor_names import HIGH_NOISE, LOW_NOISE, Key

MUSUBI_PREFIX = "lora_unet_"
COMFY_PREFIX = "diffusion_model"
_SCALES = (".scale_weight", ".weight_scale")


@dataclass(frozen=True)
class Layer:
    """LoRA weights and the layer it is for. path: as written, dotted or underscored; found: which layer that is, if known."""

    path: str
    found: Found | None
    weights: LoRAWeights

    @property
    def dotted(self) -> str:
        """The path with dots, in the file's own naming."""
        if "." in self.path:
            return self.path
        return layer_names.names_of(self.found.place, self.found.naming)[0] if self.found else layer_names.dotted(self.path)


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
    def open(cls, path: PathLike, expert: str = "") -> LoRAFile:
        """expert: which of two experts' layers are wanted (`tensor_names.LOW_NOISE`, `HIGH_NOISE`) where a file has both; UserError where
        it has both and none is asked for."""
        lora = cls(TensorFile(path))
        try:
            lora._read_names(expert)
        except UserError:
            lora.close()
            raise
        return lora

    def _read_names(self, expert: str) -> None:
        groups: dict[tuple[str, str], dict[str, str]] = {}
        parsed = {key: tensor_names.parse(key) for key in self.file.tensors}
        named = {key: name for key, name in parsed.items() if name is not None}
        experts = {name.expert for name in named.values()}
        if len(experts) > 1 and not expert:
            raise UserError(
                f"{self.file.path} holds LoRAs of both experts (transformer: high noise, transformer_2: low noise); convert_lora makes a "
                "file of each, with --expert high and --expert low"
            )
        wanted = {LOW_NOISE: (LOW_NOISE,), HIGH_NOISE: (HIGH_NOISE, "")}[expert] if len(experts) > 1 else experts
        self._check_adapters(named)
        self._check_scales(key for key, name in parsed.items() if name is None)
        for key, name in parsed.items():
            if name is None:
                self.left.append(key)
            elif name.expert in wanted:
                same = groups.setdefault((name.prefix, name.layer), {})
                if name.part in same:
                    raise UserError(f"{self.file.path}: {same[name.part]} and {key} are the same tensor of one layer; remove one")
                same[name.part] = key
        alphas = PeftAlphas.of(self.file)
        for (prefix, layer_path), keys in groups.items():
            self._add(prefix, layer_path, keys, alphas)
        if not self.layers:
            count, example = len(self.file.tensors), f" ({self.left[0]})" if self.left else ""
            raise UserError(f"{self.file.path} holds no LoRA: none of its {count} tensors is named like one{example}")

    def _check_adapters(self, named: Mapping[str, Key]) -> None:
        adapters = sorted({name.adapter for name in named.values() if name.adapter})
        if len(adapters) > 1:
            raise UserError(f"{self.file.path} holds several adapters ({', '.join(adapters)}); save each as a file of its own")

    def _check_scales(self, unknown: Iterable[str]) -> None:
        """UserError for fp8 factors that are to be multiplied by a scale next to them."""
        scale = next((key for key in unknown if key.endswith(_SCALES) and tensor_names.parse(f"{key.rpartition('.')[0]}.weight")), None)
        if scale is not None:
            raise UserError(f"{self.file.path} has factors in fp8 with scales of their own ({scale}); use the same LoRA in 16 bits")

    @property
    def metadata(self) -> dict[str, str]:
        return self.file.header.metadata

    @property
    def kinds(self) -> Counter[str]:
        """How many layers have a LoRA, a LoHa, a LoKr or a full difference."""
        return Counter(layer.weights.kind for layer in self.layers)

    @property
    def namings(self) -> Counter[str]:
        """How many layers are named in which way; "" counts those that no table has."""
        return Counter(layer.found.naming if layer.found else "" for layer in self.layers)

    @property
    def native(self) -> str:
        """The naming of the architecture it was made for; "" when it is unknown.

        Names decide, metadata only where several models have them: they are those of the likeliest one unless the metadata says
        another. Names that only a model has which is not trained here are that model's.
        """
        found = {naming: count for naming, count in self.namings.items() if naming}
        if not found:
            return ""
        stranger = next((naming for naming in found if naming in strangers.NAMINGS), None)
        naming = stranger or max(found, key=found.__getitem__)
        table = layer_names.table_of(naming)
        assert table is not None
        said, models = table.said_by(self.metadata), table.of(naming)
        return said if said == "" or said in models else models[0]

    @property
    def expects_alphas(self) -> bool:
        """Whether it is in musubi-tuner's layout, in which every LoRA ought to have an alpha."""
        return self.prefixes.most_common(1)[0][0].startswith(MUSUBI_PREFIX)

    @property
    def title(self) -> str:
        """Layout, architecture and kind in words, for reports."""
        kinds = " and ".join(sorted(kind for kind in self.kinds if kind))
        naming = max(self.namings, key=lambda name: self.namings[name])
        model = (layer_names.title_of(naming) if self.native else None) or "unknown architecture"
        return f"{self._layout()}; {model}; {kinds}"

    def close(self) -> None:
        self.file.close()

    def _layout(self) -> str:
        prefix = self.prefixes.most_common(1)[0][0]
        if prefix.startswith("lora_unet"):
            return "musubi-tuner" if "ss_base_model_version" in self.metadata or set(self.kinds) <= {LORA} else "LyCORIS"
        software = self.metadata.get("software", "") + " ".join(self.metadata)
        if prefix == "lora_transformer_" or "ot_branch" in self.metadata:
            return "OneTrainer"
        if "ai-toolkit" in software:
            return "ai-toolkit"
        titles = {"lycoris_": "LyCORIS", "diffusion_model.": "ComfyUI (diffusion-pipe, ai-toolkit)", "": "DiffSynth (no prefix)",
                  "transformer.": self._behind_transformer()}  # fmt: skip
        return titles.get(prefix, f"PEFT ({prefix}…)" if "base_model" in prefix else prefix)

    def _behind_transformer(self) -> str:
        """Who writes these names behind `transformer.`."""
        writers = (one.behind_transformer for table in layer_names.tables() for one in table.namings if self.namings[one.id])
        return next((writer for writer in writers if writer != "diffusers"), "diffusers")

    def _add(self, prefix: str, path: str, keys: Mapping[str, str], alphas: PeftAlphas | None) -> None:
        parts = {part: read(self.file, key) for part, key in keys.items()}
        source = f"{self.file.path}: {next(iter(keys.values())).rpartition('.')[0]}"
        weights = LoRAWeights(parts, source)
        alpha = self.file.number(keys[ALPHA]) if ALPHA in keys else alphas.alpha(prefix, path, weights.rank) if alphas else None
        if alpha is not None and ALPHA not in parts:
            parts[ALPHA] = number(alpha, "F32")
        weights = usual(LoRAWeights(parts, source, alpha))
        found = layer_names.find(path)
        if not weights.kind or (not prefix and found is None):
            self.left += keys.values()
            return
        weights.check()
        self.prefixes[prefix] += 1
        self.layers.append(Layer(path, found, weights))


def arranged(lora: LoRAFile, naming: str, apart: bool = False) -> Iterator[tuple[str, LoRAWeights]]:
    """(dotted path, LoRA weights) of each layer as `naming` has the layers: fused ones are split, parts are fused, exactly.

    apart: what cannot be fused into one is given as several, each with its `rows` of the layer.
    Layers that `naming` does not know keep their own path. UserError for a LoKr or DoRA that cannot be split or fused.
    """
    waiting: dict[str, list[LoRAWeights | None]] = {}
    for layer in lora.layers:
        found = layer.found
        if found is None or not layer_names.has_naming(found.place, naming):
            yield layer.dotted, layer.weights
            continue
        names = layer_names.names_of(found.place, naming)
        if layer_names.is_fused(found.place, naming):
            parts = waiting.setdefault(names[0], [None] * layer_names.parts_of(found.place))
            parts[found.place.part or 0] = layer.weights
        elif len(names) > 1:
            yield from zip(names, split(layer.weights, len(names)), strict=True)
        else:
            yield names[0], layer.weights
    for path, several in waiting.items():
        if apart and not fusible(several):
            yield from ((path, weights) for weights in placed(several))
            continue
        first = next(weights for weights in several if weights is not None)
        yield path, fuse(several, first.source)


def musubi_tensors(path: str, weights: LoRAWeights) -> Iterator[tuple[str, Part]]:
    """(name, tensor) of one layer in musubi-tuner's layout. A LoRA without alpha gets its rank as a whole number, as there."""
    name = MUSUBI_PREFIX + path.replace(".", "_")
    for part, tensor in weights.parts.items():
        yield f"{name}.{part}", tensor
    if weights.kind == LORA and ALPHA not in weights.parts:
        yield f"{name}.{ALPHA}", number(weights.rank, "I64")


def comfy_tensors(path: str, weights: LoRAWeights, prefix: str = COMFY_PREFIX) -> Iterator[tuple[str, Part]]:
    """(name, tensor) of one layer with dots and lora_A / lora_B, whose layout has no alpha: its share of the scale goes into the
    factors, the root into each, the sign into lora_B. Other kinds keep their parts.

    UserError for DoRA with a magnitude for each output: ComfyUI divides by the norm of the model's weight there, and not of the changed
    one (`weight_decompose` in github.com/comfyanonymous/ComfyUI, `comfy/weight_adapter/base.py`). Magnitudes times the quotient of the two
    norms would be right, but only the model has them. For each input it divides by the changed one's.
    """
    if DORA in weights.parts and weights.parts[DORA].shape[0] > 1:
        raise UserError(
            f"{weights.source} is a DoRA with a magnitude for each output, which ComfyUI divides by the norms of the model's weight and "
            "not of the changed one; what would put that right differs from model to model: merge it into yours with merge_lora (and make "
            "a LoRA of the difference with extract_lora), or convert with --target default"
        )
    if DORA in weights.parts:
        weights = with_dimensions(weights)
    if weights.kind != LORA:
        for part, tensor in weights.parts.items():
            yield f"{prefix}.{path}.{part}", tensor
        return
    alpha = weights.parts.get(ALPHA)
    root, sign = split_scale(alpha, weights.rank) if alpha else (1.0, 1.0)
    for part, tensor in weights.parts.items():
        if part == DOWN:
            yield f"{prefix}.{path}.lora_A.weight", scaled(tensor, root)
        elif part == UP:
            yield f"{prefix}.{path}.lora_B.weight", scaled(tensor, sign * root)
        elif part != ALPHA:
            yield f"{prefix}.{path}.{part}", tensor
