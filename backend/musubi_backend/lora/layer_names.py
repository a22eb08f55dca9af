"""The names that programs give to the same layers in LoRA files. Standard library only.

A *naming* is one way to write a transformer's module paths. The namings of one architecture are the columns of its table; a row is one
layer, or several where one naming fuses what another keeps apart (HunyuanVideo's qkv and linear1). `{}` is the number of the block.
Sources: the state dicts of github.com/Wan-Video/Wan2.1, Tencent-Hunyuan/HunyuanVideo and lllyasviel/FramePack, and of diffusers'
and ComfyUI's versions of them.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache

WAN, WAN_DIFFUSERS = "wan", "wan_diffusers"
HUNYUAN, HUNYUAN_COMFY, FRAMEPACK = "hv", "hv_comfy", "fp"
QWEN_IMAGE = "qwen_image"
NAMING_TITLES = {
    WAN: "Wan", WAN_DIFFUSERS: "Wan, diffusers' names", HUNYUAN: "HunyuanVideo", HUNYUAN_COMFY: "HunyuanVideo, ComfyUI's names",
    FRAMEPACK: "FramePack, or HunyuanVideo with diffusers' names", QWEN_IMAGE: "Qwen-Image",
}  # fmt: skip

Row = tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Table:
    """The namings of one architecture, and its layers: row -> naming -> names (several: the parts of a fused layer, in order)."""

    namings: tuple[str, ...]
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Place:
    """One layer of an architecture, whatever it is called: row of its table, part of a fused layer (None: all of it), block number."""

    table: int
    row: int
    part: int | None
    block: str


@dataclass(frozen=True)
class Found:
    """What a name means: a layer, and the naming it was written in."""

    place: Place
    naming: str


def find(path: str) -> Found | None:
    """The layer a module path means, written with dots or (as in `lora_unet_...`) with underscores; None when no table has it."""
    template, block = _template(path)
    with_dots, with_underscores = _index()
    # Dots are not trusted: musubi-tuner's converter writes FramePack's "attn.to_q" as "attn.to.q".
    entry = with_dots.get(template) or with_underscores.get(_template(path.replace(".", "_"))[0])
    if entry is None:
        return None
    table, row, part, naming = entry
    return Found(Place(table, row, part, block), naming)


def names_of(place: Place, naming: str) -> tuple[str, ...]:
    """The dotted paths of a layer in `naming`: one, or the parts where that naming keeps apart what `place` is all of.

    A part of a layer that `naming` fuses gives the one path of the whole.
    """
    names = _names(place, naming)
    if place.part is not None and len(names) > 1:
        names = (names[place.part],)
    return tuple(name.format(place.block) for name in names)


def is_fused(place: Place, naming: str) -> bool:
    """True when `place` is a part of a layer that `naming` has as one."""
    return place.part is not None and len(_names(place, naming)) == 1


def parts_of(place: Place) -> int:
    """Into how many parts the layer of `place` falls where it is not fused."""
    return max(len(names) for names in TABLES[place.table].rows[place.row])


def has_naming(place: Place, naming: str) -> bool:
    return naming in TABLES[place.table].namings


def naming_of(paths: Iterable[str]) -> str:
    """The naming that most of the layers with these paths are written in; "" when no table has any."""
    counts = Counter(found.naming for path in paths if (found := find(path)))
    return counts.most_common(1)[0][0] if counts else ""


def dotted(underscored: str) -> str:
    """An underscored path with its dots, by the tables, else by the compound words that transformers use."""
    found = find(underscored)
    return names_of(found.place, found.naming)[0] if found else _by_words(underscored, _COMPOUNDS)


def musubi_dotted(underscored: str) -> str:
    """An underscored path with the dots musubi-tuner's converter gives it: right for Wan and HunyuanVideo, wrong for most FramePack
    layers, which it takes for Qwen-Image's or leaves without any underscore."""
    template, block = _template(underscored)
    names = {name.replace(".", "_"): name for (row,) in TABLES[_QWEN_TABLE].rows for name in row}
    if template in names and (not block or int(block) < 100):
        return names[template].format(block)
    spaced = underscored.replace("_", ".")
    for words, compounds in _MUSUBI_RULES:
        if any(word in spaced for word in words):
            for word in compounds:
                spaced = spaced.replace(word.replace("_", "."), word)
            break
    return spaced


def _names(place: Place, naming: str) -> tuple[str, ...]:
    table = TABLES[place.table]
    return table.rows[place.row][table.namings.index(naming)]


def _template(path: str) -> tuple[str, str]:
    """ "blocks.12.ffn.0" -> ("blocks.{}.ffn.0", "12")"""
    match = _BLOCK.search(path)
    if match is None:
        return path, ""
    return path[: match.start("number")] + "{}" + path[match.end("number") :], match["number"]


@lru_cache(maxsize=1)
def _index() -> tuple[dict[str, tuple[int, int, int | None, str]], ...]:
    """Template -> its place and naming, for dotted and for underscored paths. The first naming that has a name wins."""
    with_dots: dict[str, tuple[int, int, int | None, str]] = {}
    with_underscores: dict[str, tuple[int, int, int | None, str]] = {}
    for number, table in enumerate(TABLES):
        for column, naming in enumerate(table.namings):
            for row_number, row in enumerate(table.rows):
                for part, name in enumerate(row[column]):
                    entry = (number, row_number, part if len(row[column]) > 1 else None, naming)
                    with_dots.setdefault(name, entry)
                    with_underscores.setdefault(name.replace(".", "_"), entry)
    return with_dots, with_underscores


def _by_words(underscored: str, compounds: Iterable[tuple[str, str]]) -> str:
    path = underscored.replace("_", ".")
    for pattern, name in compounds:
        path = re.sub(pattern, name, path)
    return path


_BLOCK = re.compile(r"blocks[._](?P<number>\d+)(?=[._])")

_COMPOUNDS = (
    (r"\b(self|cross)\.attn\b", r"\1_attn"),
    (r"\b(k|v)\.img\b", r"\1_img"),
    (r"\b(double|single|transformer|vace|refiner)\.(?=blocks\b|transformer\b)", r"\1_"),
    (r"\b(img|txt)\.(mlp|mod)\b", r"\1_\2"),
    (r"\b(img|txt)\.attn\.", r"\1_attn_"),
    (r"\bto\.(q|k|v|out)\b", r"to_\1"),
    (r"\bto\.add\.out\b", r"to_add_out"),
    (r"\badd\.(q|k|v)\.proj\b", r"add_\1_proj"),
    (r"\b(proj)\.(out|mlp|in)\b", r"\1_\2"),
    (r"\bfeed\.forward\b", r"feed_forward"),
    (r"\bff\.context\b", r"ff_context"),
)
_MUSUBI_RULES = (
    ((".cross.attn.", ".self.attn."), ("cross_attn", "self_attn", "k_img", "v_img")),
    ((".attention.to.", ".feed.forward."), ("to_q", "to_k", "to_v", "to_out", "feed_forward")),
    (("double.blocks.", "single.blocks."), ("double_blocks.", "single_blocks.", "img_", "txt_", "attn_")),
)


def _same(*names: str) -> list[Row]:
    return [((name,), (name,)) for name in names]


def _wan_rows() -> tuple[Row, ...]:
    pairs = {
        "ffn.0": "ffn.net.0.proj", "ffn.2": "ffn.net.2", "norm3": "norm2",
        "cross_attn.k_img": "attn2.add_k_proj", "cross_attn.v_img": "attn2.add_v_proj", "cross_attn.norm_k_img": "attn2.norm_added_k",
    }  # fmt: skip
    for ours, theirs in (("self_attn", "attn1"), ("cross_attn", "attn2")):
        pairs |= {f"{ours}.{x}": f"{theirs}.to_{x}" for x in "qkv"}
        pairs |= {f"{ours}.o": f"{theirs}.to_out.0", f"{ours}.norm_q": f"{theirs}.norm_q", f"{ours}.norm_k": f"{theirs}.norm_k"}
    outside = {
        "text_embedding.0": "text_embedder.linear_1", "text_embedding.2": "text_embedder.linear_2", "time_projection.1": "time_proj",
        "time_embedding.0": "time_embedder.linear_1", "time_embedding.2": "time_embedder.linear_2",
        "img_emb.proj.0": "image_embedder.norm1", "img_emb.proj.1": "image_embedder.ff.net.0.proj",
        "img_emb.proj.3": "image_embedder.ff.net.2", "img_emb.proj.4": "image_embedder.norm2",
    }  # fmt: skip
    rows: list[Row] = [((f"blocks.{{}}.{ours}",), (f"blocks.{{}}.{theirs}",)) for ours, theirs in pairs.items()]
    rows += [((ours,), (f"condition_embedder.{theirs}",)) for ours, theirs in outside.items()]
    rows += [*_same("patch_embedding"), (("head.head",), ("proj_out",))]
    # Not layers but tables, changed by full differences (lightx2v's `diff_m`).
    rows += [(("blocks.{}.modulation",), ("blocks.{}.scale_shift_table",)), (("head.modulation",), ("scale_shift_table",))]
    return tuple(rows)


def _hunyuan_rows() -> tuple[Row, ...]:
    """Columns: original, ComfyUI, and diffusers, whose names FramePack has too."""
    rows: list[Row] = []

    def row(original: str, comfy: str, *diffusers: str) -> None:
        rows.append(((original,), (comfy,), diffusers))

    double, theirs = "double_blocks.{}", "transformer_blocks.{}"
    parts = {"img": ("to_{}", "to_out.0", "ff", "norm1"), "txt": ("add_{}_proj", "to_add_out", "ff_context", "norm1_context")}
    for stream, (qkv, out, mlp, norm) in parts.items():
        attention = f"{double}.{stream}_attn"
        row(f"{attention}_qkv", f"{attention}.qkv", *(f"{theirs}.attn." + qkv.format(x) for x in "qkv"))
        row(f"{attention}_proj", f"{attention}.proj", f"{theirs}.attn.{out}")
        row(f"{double}.{stream}_mlp.fc1", f"{double}.{stream}_mlp.0", f"{theirs}.{mlp}.net.0.proj")
        row(f"{double}.{stream}_mlp.fc2", f"{double}.{stream}_mlp.2", f"{theirs}.{mlp}.net.2")
        row(f"{double}.{stream}_mod.linear", f"{double}.{stream}_mod.lin", f"{theirs}.{norm}.linear")
    single, theirs = "single_blocks.{}", "single_transformer_blocks.{}"
    row(f"{single}.linear1", f"{single}.linear1", *(f"{theirs}.attn.to_{x}" for x in "qkv"), f"{theirs}.proj_mlp")
    row(f"{single}.linear2", f"{single}.linear2", f"{theirs}.proj_out")
    row(f"{single}.modulation.linear", f"{single}.modulation.lin", f"{theirs}.norm.linear")
    refiner, theirs = "txt_in.individual_token_refiner.blocks.{}", "context_embedder.token_refiner.refiner_blocks.{}"
    row(f"{refiner}.self_attn_qkv", f"{refiner}.self_attn.qkv", *(f"{theirs}.attn.to_{x}" for x in "qkv"))
    row(f"{refiner}.self_attn_proj", f"{refiner}.self_attn.proj", f"{theirs}.attn.to_out.0")
    row(f"{refiner}.mlp.fc1", f"{refiner}.mlp.0", f"{theirs}.ff.net.0.proj")
    row(f"{refiner}.mlp.fc2", f"{refiner}.mlp.2", f"{theirs}.ff.net.2")
    row(f"{refiner}.adaLN_modulation.1", f"{refiner}.adaLN_modulation.1", f"{theirs}.norm_out.linear")
    row("img_in.proj", "img_in.proj", "x_embedder.proj")
    row("txt_in.input_embedder", "txt_in.input_embedder", "context_embedder.proj_in")
    embedders = {"time_in": "time_text_embed.timestep_embedder", "guidance_in": "time_text_embed.guidance_embedder",
                 "txt_in.t_embedder": "context_embedder.time_text_embed.timestep_embedder"}  # fmt: skip
    for ours, theirs in embedders.items():
        row(f"{ours}.mlp.0", f"{ours}.in_layer", f"{theirs}.linear_1")
        row(f"{ours}.mlp.2", f"{ours}.out_layer", f"{theirs}.linear_2")
    for number, layer in ((1, "in_layer"), (2, "out_layer")):
        theirs = f"context_embedder.time_text_embed.text_embedder.linear_{number}"
        row(f"txt_in.c_embedder.linear_{number}", f"txt_in.c_embedder.{layer}", theirs)
    row("vector_in.in_layer", "vector_in.in_layer", "time_text_embed.text_embedder.linear_1")
    row("vector_in.out_layer", "vector_in.out_layer", "time_text_embed.text_embedder.linear_2")
    return tuple(rows)


def _qwen_rows() -> tuple[Row, ...]:
    attention = ("norm_q", "norm_k", "to_q", "to_k", "to_v", "add_k_proj", "add_v_proj", "add_q_proj", "to_out.0", "to_add_out",
                 "norm_added_q", "norm_added_k")  # fmt: skip
    others = ("img_mod.1", "img_mlp.net.0.proj", "img_mlp.net.2", "txt_mod.1", "txt_mlp.net.0.proj", "txt_mlp.net.2")
    outside = ("time_text_embed.timestep_embedder.linear_1", "time_text_embed.timestep_embedder.linear_2", "txt_norm", "img_in", "txt_in",
               "norm_out.linear", "proj_out")  # fmt: skip
    names = [*outside, *(f"transformer_blocks.{{}}.attn.{name}" for name in attention), *(f"transformer_blocks.{{}}.{n}" for n in others)]
    return tuple(((name,),) for name in names)


TABLES: tuple[Table, ...] = (
    Table((WAN, WAN_DIFFUSERS), _wan_rows()),
    Table((HUNYUAN, HUNYUAN_COMFY, FRAMEPACK), _hunyuan_rows()),
    Table((QWEN_IMAGE,), _qwen_rows()),
)
_QWEN_TABLE = 2


def said_naming(metadata: Mapping[str, str]) -> str | None:
    """The naming of the architecture that a LoRA's metadata names, in whatever spelling; "" for FLUX, which shares HunyuanVideo's names;
    None where it names none of these."""
    said = " ".join(metadata.get(key, "") for key in _SAYING).lower()
    return next((naming for word, naming in _SAID if word in said), None)


_SAYING = ("ss_base_model_version", "modelspec.architecture", "modelspec.implementation", "ss_network_module")
_SAID = (("framepack", FRAMEPACK), ("hunyuan", HUNYUAN), ("wan", WAN), ("qwen", QWEN_IMAGE), ("flux", ""), ("chroma", ""))
