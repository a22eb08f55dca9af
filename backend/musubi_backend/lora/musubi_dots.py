"""The dots that musubi-tuner's converter puts into underscored paths. Standard library only."""

from __future__ import annotations

from .layer_names import numberless
from .strangers import QWEN_ROWS


def musubi_dotted(underscored: str) -> str:
    """An underscored path with the dots that converter gives it: wrong for most layers with diffusers' names, which it takes for
    Qwen-Image's or leaves without any underscore."""
    shape, block = numberless(underscored)
    names = {name.replace(".", "_"): name for (row,) in QWEN_ROWS for name in row}
    if shape in names and (not block or int(block) < 100):
        return names[shape].format(block)
    spaced = underscored.replace("_", ".")
    for words, compounds in _RULES:
        if any(word in spaced for word in words):
            for word in compounds:
                spaced = spaced.replace(word.replace("_", "."), word)
            break
    return spaced


_RULES = (
    ((".cross.attn.", ".self.attn."), ("cross_attn", "self_attn", "k_img", "v_img")),
    ((".attention.to.", ".feed.forward."), ("to_q", "to_k", "to_v", "to_out", "feed_forward")),
    (("double.blocks.", "single.blocks."), ("double_blocks.", "single_blocks.", "img_", "txt_", "attn_")),
)
