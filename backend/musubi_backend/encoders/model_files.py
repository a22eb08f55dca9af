"""An encoder given as one file or as a folder in Hugging Face's layout, and filling a transformers model from it.

Tensors go from the file into the module one by one. What shapes do not tell (heads, rotary base) comes from the file's metadata
(`weights.geometry`), a folder's `config.json`, or is what the published model has, in this order.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..device import computed_in
from ..documents import parse_json
from ..errors import StopRequested, UserError
from ..weights.geometry import geometry_metadata
from ..weights.recognise import PREFIXES, expect, recognise
from .stoppable import stop_between_layers

if TYPE_CHECKING:
    import torch
    from torch import nn

    from ..weights.loader import Weights

_WEIGHT_NAMES = ("model*.safetensors", "diffusion_pytorch_model*.safetensors", "*.safetensors", "pytorch_model.bin")


@dataclass(frozen=True)
class ModelFiles:
    """Where a model's weights and sizes are.

    weights   the file to read, any one where there are several parts
    config    a folder's `config.json`, with the part about this model on top
    own       what the file's metadata says
    source    for messages, the flag and the path
    part      prefix of the model's names in a file of several models
    """

    weights: Path
    config: Mapping[str, Any]
    own: Mapping[str, Any]
    source: str
    part: str = ""

    def number(self, name: str, published: Any) -> Any:
        """A size under transformers' name for it."""
        return self.own.get(name, self.config.get(name, published))

    def size(self, name: str, of: int, published_share: int) -> int:
        """How many parts (heads) a width `of` has, where a part of the published model is `published_share` wide."""
        return int(self.number(name, max(1, of // published_share)))

    def open(self) -> Weights:
        """The headers of the model's weights, a prefix of all names taken off. Imports torch."""
        from ..weights.loader import open_weights

        return open_weights(self.weights, (self.part,) if self.part else PREFIXES)


def model_files(
    path: str | Path, kind: str, flag: str, *, subfolder: str = "", section: str = "", within: tuple[str, str] | None = None
) -> ModelFiles:
    """Find and judge the weights at `path`: a file, or a folder that holds them or has them in `subfolder`.

    kind: see `weights.kinds`; within: another kind whose files hold this model among others, and its prefix there; section: key of
    `config.json` that this model's sizes stand under in models of several parts.
    UserError naming the file and `flag` when there are none, or they are of another kind.
    """
    place = Path(path)
    if not place.is_dir():
        return ModelFiles(place, {}, geometry_metadata(place), f"{flag} {path}", _part(place, kind, flag, within))
    folder = place / subfolder if subfolder and (place / subfolder).is_dir() else place
    weights = next((file for pattern in _WEIGHT_NAMES for file in sorted(folder.glob(pattern))), None)
    if weights is None:
        raise UserError(f"{flag} {path}: no weights in this folder (looked for {', '.join(_WEIGHT_NAMES)})")
    part = _part(weights, kind, flag, within)
    return ModelFiles(weights, _config(folder / "config.json", section), geometry_metadata(weights), f"{flag} {path}", part)


def _part(file: Path, kind: str, flag: str, within: tuple[str, str] | None) -> str:
    """The prefix of the wanted model in a file of several; "" in one of its own. UserError when it is in neither."""
    found = recognise(file) if within is not None else None
    if within is not None and found is not None and found.id == within[0]:
        return within[1]
    expect(file, kind, flag)
    return ""


def _config(path: Path, section: str) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        config = parse_json(path.read_text(encoding="utf-8"), dict, paths=True)
        return {**config, **config.get(section, {})}
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is damaged ({error}); fetch it again") from error


def fill(
    model: nn.Module,
    weights: Weights,
    device: torch.device,
    dtype: torch.dtype,
    bare: Callable[[str], str | None],
    stay: Collection[str] = (),
) -> Any:
    """Fill a transformers model built on "meta"; returns it frozen, in eval mode.

    bare: a file's name -> the name without the prefixes that versions of transformers and packers of files put before it, None to
    leave the tensor out. stay: names of the tensors that end up in system RAM.
    """
    import torch

    from ..weights.loader import load_into

    own = {_PREFIX.sub("", name): name for name in model.state_dict()}

    def rename(name: str) -> str | None:
        stripped = bare(name)
        return own.get(stripped) if stripped is not None else None

    load_into(model, weights, device, dtype, rename=rename, stay=stay)
    for name, buffer in list(model.named_buffers()):
        if buffer.is_meta and name.endswith("position_ids"):
            parent, _, leaf = name.rpartition(".")
            positions = torch.arange(buffer.shape[-1], device=device)[None]
            model.get_submodule(parent).register_buffer(leaf, positions, persistent=False)
    stop_between_layers(model)
    return model.eval().requires_grad_(False)


_PREFIX = re.compile(r"^(?:text_model|vision_model|model)\.")


def without_prefix(name: str) -> str:
    """`vision_model.encoder.…` -> `encoder.…`, the same for text_model and model."""
    return _PREFIX.sub("", name)


def dtypes_for(
    weights: Weights, device: torch.device, dtype: torch.dtype | None, kept: torch.dtype | None = None
) -> tuple[torch.dtype, torch.dtype]:
    """(what features are given in, what is computed in) of an encoder that was asked for `dtype` and `kept`: without a dtype the file's
    (float16 for fp8 files), computed as `device.computed_in` says."""
    import torch

    if dtype is not None:
        return kept or dtype, dtype
    stored = weights.main_dtype()
    own = stored if stored in (torch.float32, torch.bfloat16, torch.float16) else torch.float16
    return own, computed_in(own, device)


@contextlib.contextmanager
def sized_by(source: str) -> Iterator[None]:
    """While a module is made by what a file says of its sizes: UserError of `source` for whatever shapes, metadata or a config.json make a
    library raise."""
    try:
        yield
    except (UserError, StopRequested, MemoryError):
        raise
    except Exception as error:
        what = " ".join(str(error).split())[:200]
        raise UserError(f"{source}: no model of this kind has such sizes ({what}); fetch the file again, or use another one") from error


def shape_of(weights: Weights, ending: str, source: str) -> tuple[int, ...]:
    """The shape of the first tensor whose name ends so; UserError where there is none."""
    for name, info in weights.header.tensors.items():
        if name.endswith(ending):
            return info.shape
    raise UserError(f"{source}: the file is incomplete ({ending} is missing)")


def count_layers(weights: Weights, pattern: str) -> int:
    """How many different numbers the group of `pattern` takes in the names."""
    return len({match[1] for name in weights.header.tensors if (match := re.search(pattern, name))})
