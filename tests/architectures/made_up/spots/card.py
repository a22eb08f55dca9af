"""Facts about Spots, which exist only to show what an architecture of images says: no time in its latents, no length, no video, two tasks
whose files and caches differ, a text encoder that only one of them has, and a second transformer that only samples use."""

from __future__ import annotations

from dataclasses import replace

from ..card import IMAGE, TEXT_ENCODER, TRANSFORMER, Part, Task
from ..dots.card import CARD as DOTS


def _part(name: str, role: str, what: str, file: str, kind: str, **more: object) -> Part:
    return Part(name, role, what, "diffusion_models", f"{file}.safetensors", "float32", kinds=(kind,), **more)  # type: ignore[arg-type]


_EDIT_FILE = {"edit": {"kinds": ("spots_edit_transformer",), "example": "spots_edit.safetensors"}}
_EDITING = {"caches": "spe", "text_keys": ("letters", "words"), "controls_per_image": None}
_PLAIN = Task("plain", dim=16, ffn_dim=32, num_heads=1, num_layers=2, in_dim=3, steps=4, flow_shift=1.0, guidance_scale=1.0, frames=1)

CARD = replace(
    DOTS,
    id="spots",
    name="spots",
    title="Spots 2.0",
    family="Spots 2.0",
    tool_prefix="spots_",
    lora_blocks=("SpotsBlock",),
    tasks=(
        _PLAIN,
        replace(_PLAIN, name="edit", control=True, differs=_EDITING),
    ),
    task_option="model_version",
    parts=(
        _part("dit", TRANSFORMER, "The transformer", "spots", "spots_transformer", differs=_EDIT_FILE),
        *DOTS.parts[1:],
        _part("alphabet", TEXT_ENCODER, "What counts letters", "alphabet", "spots_alphabet"),
        _part("dictionary", TEXT_ENCODER, "What counts words", "dictionary", "spots_dictionary", tasks=("edit",), only_for="edit"),
        _part("dit_quick", TRANSFORMER, "The quick transformer", "quick", "spots_transformer", only_for="samples while training"),
    ),
    layers_of="dots",
    makes=IMAGE,
    latent_rank=3,
    frame_stride=1,
)
