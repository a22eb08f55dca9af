"""What the name of one tensor in a LoRA file says: prefix, layer and part. Standard library only.

name = prefix · layer · part. A prefix is any sequence of the words by which programs say "the transformer of this model", a part one of
the words of `_PARTS`, with the name of a PEFT adapter behind it where the file has one. Layers are `layer_names`'.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from . import layer_names
from .shapes import ALPHA, BIAS, DORA, DOWN, UP

LOW_NOISE, HIGH_NOISE = "low", "high"


@dataclass(frozen=True)
class Key:
    """prefix: as written, with its separator. layer: path, dotted or underscored. adapter: PEFT's name of it; "" for most."""

    prefix: str
    layer: str
    part: str
    adapter: str = ""

    @property
    def expert(self) -> str:
        """LOW_NOISE or HIGH_NOISE where the prefix names one of two experts; "" for most. diffusers calls the low-noise expert
        `transformer_2`, and the other one as any transformer."""
        if "transformer_2" in self.prefix or "low_noise" in self.prefix:
            return LOW_NOISE
        return HIGH_NOISE if "high_noise" in self.prefix else ""


def parse(key: str) -> Key | None:
    """None for the names of other things, among them text encoders' layers."""
    match = _KEY.fullmatch(_WRAPPERS.sub("", _OLD_DIFFUSERS.sub(_new_diffusers, key.replace("$$", "."))))
    if match is None:
        return None
    path, part = match["path"], _PARTS.get(match["part"], match["part"])
    if match["leaf"] == "bias":
        if part != UP:
            return None
        part = BIAS
    if part == "diff_m":
        path, part = path + ("." if "." in path or not _UNDERSCORED.match(path) else "_") + "modulation", "diff"
    prefix, layer = _split(path)
    if _TEXT_ENCODER.match(layer) or (not prefix and "." not in layer and layer_names.find(layer) is None):
        return None
    return Key(prefix, layer, part, match["adapter"] or "")


def _new_diffusers(old: re.Match[str]) -> str:
    """`attn1.processor.to_q_lora.down` -> `attn1.to_q.lora.down`, as diffusers wrote it before it used PEFT."""
    return f".{old['layer']}{'.0' if old['layer'] == 'to_out' else ''}.lora."


def _split(path: str) -> tuple[str, str]:
    """(prefix, layer): the longest layer that a table knows, else what is left behind all words of prefixes."""
    underscored = None if "." in path else _UNDERSCORED.match(path)
    words, start = (_WORDS_UNDERSCORED, underscored.end()) if underscored else (_WORDS_DOTTED, 0)
    starts = [start]
    while word := words.match(path, starts[-1]):
        starts.append(word.end())
    known = next((at for at in starts if layer_names.find(path[at:]) is not None), None)
    if known is None and underscored is None:
        known = _known_end(path, starts[-1])
    if known is None:  # "transformer_blocks_0_..." begins no prefix, and in "lora_unet_unet_down_..." the layer begins with the second
        starts = [at for at in starts if not path.startswith("transformer_blocks_", at - len("transformer_"))] or starts
        starts = starts[:2] if underscored else starts
    at = starts[-1] if known is None else known
    return path[:at], path[at:]


def _known_end(path: str, start: int) -> int | None:
    """Where a layer that a table knows begins behind words that no program is known for (`my_model.blocks.0.ffn.0`); None where none
    does. Words that say that it is another model's end the search."""
    for dot in re.finditer(r"\.", path[start:]):
        at = start + dot.end()
        if _OTHER_MODEL.search(path[start:at]):
            return None
        if layer_names.find(path[at:]) is not None:
            return at
    return None


_PARTS = {
    "lora_A": DOWN, "lora_down": DOWN, "lora.down": DOWN, "lora_B": UP, "lora_up": UP, "lora.up": UP,
    "lora_linear_layer.down": DOWN, "lora_linear_layer.up": UP, "lora_mid": "lora_mid.weight",
    "lora_magnitude_vector": DORA, "magnitude": DORA, "dora_scale": DORA, "alpha": ALPHA, "w_norm": "diff", "b_norm": "diff_b",
}  # fmt: skip
_KEY = re.compile(
    r"(?P<path>.+?)\.(?P<part>lora_A|lora_B|lora_down|lora_up|lora(?:_linear_layer)?\.(?:down|up)|lora_mid|lora_magnitude_vector|magnitude|alpha|dora_scale"
    r"|diff|diff_b|diff_m|w_norm|b_norm|set_weight|(?:hada|lokr)_[wt][12](?:_[ab])?)"
    r"(?:\.(?P<adapter>(?!(?:weight|bias|scale_weight|weight_scale)$)[^.]+))?(?:\.(?P<leaf>weight|bias))?"
)
_OLD_DIFFUSERS = re.compile(r"(?:\.processor)?\.(?P<layer>[^.]+)_lora\.(?=(?:down|up)\.)")
_WRAPPERS = re.compile(r"(?:_orig_mod|_checkpoint_wrapped_module|_fsdp_wrapped_module)\.|(?<=\.)base_layer\.")
_WORDS = r"base_model[._]model|diffusion_model|model|transformer(?:_2)?|unet|dit|pipe|module|network|low_noise_model|high_noise_model"
_UNDERSCORED = re.compile(r"(?:[^.]*?_)??(?:lora|lycoris)_", re.IGNORECASE)
_WORDS_UNDERSCORED = re.compile(rf"(?:{_WORDS})_+", re.IGNORECASE)
_WORDS_DOTTED = re.compile(rf"(?:{_WORDS}|lora_unet|lora_transformer|lycoris)\.")
_TEXT_ENCODER = re.compile(r"(?:prior_)?te\d*_|text_(?:model|encoder)|text_encoders?[._]|clip_[lgh][._]|t5")
_OTHER_MODEL = re.compile(r"text|clip|t5|bert|llama|encoder|vace|control|refiner|blocks|adapter|\bte\d*\b|\d", re.IGNORECASE)
