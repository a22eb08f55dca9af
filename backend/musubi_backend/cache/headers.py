"""Is a cache file there, whole and made for this item? Answered from its header alone, without torch."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import UserError
from ..weights.safetensors_file import Header, read_header
from . import tensor_keys
from .forms import Form, problem
from .names import SUFFIX

if TYPE_CHECKING:
    from ..architectures.card import Card

FORMAT_VERSION = "1.0.1"


def check_cache(path: Path, card: Card) -> Header:
    """The header of a cache file of this architecture. UserError names the file and the fix when it is damaged or another's."""
    try:
        header = read_header(path)
    except UserError as error:
        raise _damaged(path, error) from error
    found = header.metadata.get("architecture")
    if found != card.name:
        what = f"a cache for {found!r}" if found else "not a cache file (no architecture in its metadata)"
        raise UserError(
            f"{path} is {what}, expected one for {card.name!r} ({card.title}). Delete it and cache again, or use another cache_directory."
        )
    return header


def check_form(path: Path, header: Header, forms: Mapping[str, Form]) -> None:
    """UserError where a cache's tensors are not what is trained with."""
    reason = problem(header, forms)
    if reason is not None:
        what = "text encoder outputs" if path.name.endswith(f"_te{SUFFIX}") else "latents"
        raise UserError(f"{path}: {reason}; delete it and cache the {what} again for this task and model")


def _damaged(path: Path, error: UserError) -> UserError:
    """The error to raise for a cache file that cannot be read, from the reader's own."""
    return UserError(f"the cache file {path} is damaged; delete it and cache again ({error})")


def latents_problem(
    path: Path,
    card: Card,
    *,
    width: int,
    height: int,
    bucket: tuple[int, int],
    frames: int | None = None,
    latent_frames: int | None = None,
    needs: Collection[str] = (tensor_keys.LATENTS,),
) -> str | None:
    """Why the latent cache at `path` must be made (again); None when it is good.

    width, height   as in its name; `bucket` is the pixel size that was encoded; `frames` of the window, None for an image
    latent_frames   frames of the main latents; None: not compared, as one-frame items and sections have other ones
    needs           base names it must hold, e.g. {"latents", "latents_image", "clip"}
    """
    header, problem = _header(path, card)
    if header is None:
        return problem
    expected = {"width": str(width), "height": str(height)} | ({} if frames is None else {"frame_count": str(frames)})
    for key, value in expected.items():
        if header.metadata.get(key) != value:
            return f"{key} is {header.metadata.get(key)}, expected {value}"
    problem = _missing(header, needs)
    if problem:
        return problem
    shape = latent_shape(header)
    scale = card.spatial_compression
    found_frames = shape[0] if shape and len(shape) == 3 else 1
    time = (found_frames if latent_frames is None else latent_frames,) if card.latent_rank == 4 else ()
    wanted = (*time, bucket[1] // scale, bucket[0] // scale)
    return None if shape == wanted else f"latents are {_by(shape)}, expected {_by(wanted)}"


def text_problem(path: Path, card: Card, *, caption: str, needs: Collection[str] = ()) -> str | None:
    """Why the text cache at `path` must be made (again); None when it is good. `needs` holds base names, e.g. {"t5"}."""
    header, problem = _header(path, card)
    if header is None:
        return problem
    if header.metadata.get("caption1") != caption:
        return "the caption has changed"
    return _missing(header, needs)


def latent_shape(header: Header) -> tuple[int, ...] | None:
    """(F, H, W) of the main latents, (H, W) for architectures without time, None when there are none."""
    for name, info in header.tensors.items():
        if tensor_keys.base_name(name) == tensor_keys.LATENTS:
            return info.shape[1:]
    return None


def first_number(path: Path, base: str) -> int | None:
    """The first value of a cached int64 tensor; None where the file holds none of that name."""
    for name, info in read_header(path).tensors.items():
        if tensor_keys.base_name(name) == base and info.dtype == "I64":
            with path.open("rb") as file:
                file.seek(info.start)
                return int.from_bytes(file.read(8), "little", signed=True)
    return None


def control_shapes(header: Header) -> tuple[str, ...]:
    """Which control latents a file holds, with their shapes: items may share a batch only when these are equal."""
    return tuple(sorted(tensor_keys.without_dtype(name) for name in header.tensors if name.startswith(f"{tensor_keys.LATENTS}_control_")))


def _header(path: Path, card: Card) -> tuple[Header | None, str | None]:
    if not path.is_file():
        return None, "there is no cache yet"
    try:
        return check_cache(path, card), None
    except UserError as error:
        return None, str(error)


def _missing(header: Header, needs: Collection[str]) -> str | None:
    missing = sorted(set(needs) - {tensor_keys.base_name(name) for name in header.tensors})
    return f"{', '.join(missing)} missing" if missing else None


def _by(shape: tuple[int, ...] | None) -> str:
    return "x".join(str(n) for n in shape) if shape else "missing"
