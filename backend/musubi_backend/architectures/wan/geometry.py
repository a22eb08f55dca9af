"""Names and sizes in Wan weight files. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass

from ...errors import UserError
from ...weights.geometry import GEOMETRY_KEY, Shapes, StoredGeometry, count_blocks
from ...weights.safetensors_file import Header
from ..card import Task
from .card import CARD

PREFIXES = ("model.diffusion_model.", "diffusion_model.")
HEAD_DIM = 128
MASK_CHANNELS = 4
"""Of a start image's latents: in front of them, which frames are given."""

_TASK_SIZES = ("dim", "ffn_dim", "num_layers")
_INPUT_FACTS = ("in_dim", "image_encoder", "last_frame")


@dataclass(frozen=True)
class WanGeometry(StoredGeometry):
    """Sizes of a Wan transformer.

    image_dim        width of CLIP image features; None for models without a CLIP image encoder
    image_positions  how many image tokens have a learned position (two images of first-and-last-frame models), 0 for none
    """

    dim: int
    ffn_dim: int
    num_heads: int
    num_layers: int
    in_dim: int = 16
    out_dim: int = 16
    text_dim: int = 4096
    text_len: int = 512
    freq_dim: int = 256
    image_dim: int | None = None
    image_positions: int = 0
    eps: float = 1e-6


def geometry_of(header: Header, task: str) -> WanGeometry:
    """Sizes from the shapes in a header without prefix; heads are 128 wide unless the file's metadata says otherwise.

    UserError when they are not those of `task`, naming the tasks they fit. Small models that say their sizes themselves may
    have any, but must take the task's kind of input.
    """
    found = WanGeometry.of(header, "Wan", _measured)
    compared = _INPUT_FACTS if GEOMETRY_KEY in header.metadata else (*_TASK_SIZES, *_INPUT_FACTS)
    facts, wanted = _facts(found), CARD.task(task)
    differing = [key for key in compared if facts[key] != getattr(wanted, key)]
    if differing:
        fitting = [t.name for t in CARD.tasks if all(getattr(t, key) == facts[key] for key in compared)]
        advice = f"use --task {' or '.join(fitting)}" if fitting else f"no {CARD.title} task has these sizes"
        raise UserError(
            f"the weight file is not a {task} model ({', '.join(_difference(key, facts, wanted) for key in differing)}): {advice}"
        )
    return found


def _facts(geometry: WanGeometry) -> dict[str, int | bool]:
    """What a file tells about its task, under the names of `Task`."""
    return {
        **{key: getattr(geometry, key) for key in (*_TASK_SIZES, "in_dim")},
        "image_encoder": geometry.image_dim is not None,
        "last_frame": geometry.image_positions > 0,
    }


def _difference(key: str, facts: dict[str, int | bool], wanted: Task) -> str:
    named = {"image_encoder": "layers for an image encoder's features", "last_frame": "positions for a first and a last image"}
    if key in named:
        return f"it {'has' if facts[key] else 'lacks'} {named[key]}"
    return f"{key} {facts[key]} instead of {getattr(wanted, key)}"


def _measured(shapes: Shapes) -> dict[str, int | None]:
    dim, in_dim = shapes["patch_embedding.weight"][:2]
    return {
        "dim": dim,
        "ffn_dim": shapes["blocks.0.ffn.0.weight"][0],
        "num_heads": max(1, dim // HEAD_DIM),
        "num_layers": count_blocks(shapes, "blocks"),
        "in_dim": in_dim,
        "out_dim": shapes["head.head.weight"][0] // 4,
        "text_dim": shapes["text_embedding.0.weight"][1],
        "freq_dim": shapes["time_embedding.0.weight"][1],
        "image_dim": shapes["img_emb.proj.0.weight"][0] if "img_emb.proj.0.weight" in shapes else None,
        "image_positions": shapes["img_emb.emb_pos"][1] if "img_emb.emb_pos" in shapes else 0,
    }
