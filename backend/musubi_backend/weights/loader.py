"""Streaming load: tensors go from the file into the module one by one, so the peak is the model plus one tensor.

Build the module on the "meta" device first: nothing is allocated or initialised twice.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple, Protocol, TypeAlias, runtime_checkable

import torch
from torch import Tensor, nn

from .. import durations, job
from ..counted import counted
from ..errors import UserError
from ..ordinary import check_ordinary
from . import quantised
from .quantised import EIGHT_BIT_FLOATS
from .recognise import PICKLE_SUFFIXES
from .safetensors_file import (
    DTYPE_NAMES,
    TORCH_DTYPES,
    Header,
    PathLike,
    TensorInfo,
    common_prefix,
    read_header,
    read_into,
    read_tensor,
    split_files,
    torch_dtype,
    without_prefix,
)
from .scales import EIGHT_BIT_DTYPES, dequantised

logger = logging.getLogger(__name__)

Transform = Callable[[str, Tensor], Tensor]
"""(name, tensor in the file's dtype, on the target device) -> tensor, e.g. with a LoRA merged; the same object where nothing changes."""

Scale: TypeAlias = "Tensor | tuple[Path, str, TensorInfo]"
"""A scale in memory, or the file, the name and the place to read it from."""

_SHOWN = 4
_PIECE = 1 << 26
"""Bytes of a tensor that are read at a time where it is cast or moved: the embedding of umt5 has 2 GB."""


class Stored(NamedTuple):
    """A tensor of an opened file, which is read once: `whole`, or `into` a tensor of any dtype on any device, telling the bytes of
    each piece."""

    name: str
    dtype: torch.dtype
    whole: Callable[[], Tensor]
    into: Callable[[Tensor, Callable[[int], None]], None]


def _itself(tensor: Tensor) -> Tensor:
    return tensor


def _copied(tensor: Tensor, made: Tensor, had: Callable[[int], None]) -> None:
    made.copy_(tensor)
    had(tensor.nbytes)


@dataclass(frozen=True)
class Weights:
    """An opened weight file: names (without prefix), shapes and metadata; tensors are read when iterated.

    scales: where the scale of an fp8 weight is, by the weight's name. Scales and markers are in no other place.
    """

    path: Path
    header: Header
    sources: tuple[tuple[Path, dict[str, TensorInfo]], ...]
    pickled: dict[str, Tensor] | None = None
    scales: Mapping[str, Scale] = field(default_factory=dict)

    def tensors(self, reuse: bool = False) -> Iterator[Stored]:
        """In storage order, each to be read before the next one. reuse: all in the same memory, each valid until the next one."""
        if self.pickled is not None:
            for name, tensor in self.pickled.items():
                yield Stored(name, tensor.dtype, partial(_itself, tensor), partial(_copied, tensor))
            return
        largest = max((info.end - info.start for _, tensors in self.sources for info in tensors.values()), default=0)
        scratch = torch.empty(largest, dtype=torch.uint8) if reuse else None  # what is not written to takes no memory
        piece = torch.empty(_PIECE, dtype=torch.uint8) if scratch is None else scratch[:_PIECE]
        for path, tensors in self.sources:
            with path.open("rb") as file:
                for name, info in sorted(tensors.items(), key=lambda item: item[1].start):
                    one = file, name, info, path
                    yield Stored(name, torch_dtype(name, info, path), partial(read_tensor, *one, scratch), partial(read_into, *one, piece))

    def read(self, name: str) -> Tensor:
        """One tensor."""
        if self.pickled is not None:
            return self.pickled[name]
        path = next(path for path, tensors in self.sources if name in tensors)
        with path.open("rb") as file:
            return read_tensor(file, name, self.header.tensors[name], path)

    @property
    def nbytes(self) -> int:
        """Of all tensors."""
        if self.pickled is not None:
            return sum(tensor.nbytes for tensor in self.pickled.values())
        return sum(info.end - info.start for info in self.header.tensors.values())

    def scale(self, name: str) -> Tensor | None:
        """What the weight `name` is multiplied by; None for most. UserError where that is no number."""
        scale = self.scales.get(name)
        if scale is None:
            return None
        if not isinstance(scale, Tensor):
            path, stored_name, info = scale
            with path.open("rb") as file:
                scale = read_tensor(file, stored_name, info, path)
        if not scale.isfinite().all():
            raise UserError(f"{self.path}: the scale of {name} holds numbers that are not finite; the file is damaged, fetch it again")
        return scale

    @property
    def holds_fp8(self) -> bool:
        """Does the file hold fp8?"""
        return bool(self.fp8_names())

    def fp8_names(self) -> list[str]:
        """The tensors that are fp8."""
        return [name for name, info in self.header.tensors.items() if info.dtype in EIGHT_BIT_FLOATS]

    def main_dtype(self) -> torch.dtype | None:
        """The dtype most of the tensors have; None when PyTorch has no such dtype."""
        counts = Counter(info.dtype for info in self.header.tensors.values())
        name = TORCH_DTYPES.get(counts.most_common(1)[0][0]) if counts else None
        return getattr(torch, name) if name else None


def open_weights(path: PathLike, prefixes: Sequence[str] = ()) -> Weights:
    """Read the headers of a model in one or several files, or a PyTorch file (.pth, .pt).

    prefixes: of those, the first that any name has is removed; other names are left out (they belong to other models in the
    same file). UserError for unreadable files and for quantised ones that `weights.quantised` does not know.
    """
    file_path = Path(path)
    if file_path.suffix.lower() in PICKLE_SUFFIXES:
        weights = _open_pickle(file_path, prefixes)
    else:
        parts = [(part, read_header(part)) for part in split_files(file_path)]
        prefix = common_prefix((name for _, header in parts for name in header.tensors), prefixes)
        metadata = {key: value for _, header in parts for key, value in header.metadata.items()}
        weights = _sorted(file_path, tuple((part, without_prefix(header.tensors, prefix)) for part, header in parts), metadata)
    return weights


@runtime_checkable
class TakesWeight(Protocol):
    """A layer that decides itself how it keeps its weight (`memory.fp8.Fp8Linear`)."""

    def take(self, weight: Tensor, scale: Tensor | None, device: torch.device) -> Tensor:
        """A weight, to be multiplied by `scale`, as this layer keeps it; it has its own scale on `device` then."""

    def dtype_of(self, stored: torch.dtype) -> torch.dtype:
        """What a weight of a file becomes in this layer."""


def load_into(
    module: nn.Module,
    weights: Weights,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    transform: Transform | None = None,
    rename: Callable[[str], str | None] | None = None,
    optional: Collection[str] = (),
    stay: Collection[str] = (),
    part: Callable[[str, Tensor], Tensor] | None = None,
) -> None:
    """Fill the parameters and buffers of `module` (best built on "meta"); they become frozen tensors on `device`.

    dtype: what floating point tensors are cast to; None keeps the file's. transform runs before that cast. rename: file name
    -> module name, None to leave a tensor out. optional: names that may be missing. stay: names of tensors that end up in system
    RAM whatever the device is. part: what is kept of a tensor, by its name in the module.
    fp8 stay what they are in an `Fp8Linear`, which also turns what else it is given into them; elsewhere they are
    multiplied by their scale and cast (to bfloat16 where dtype is None).
    On the device "meta" nothing is read: the module gets empty tensors of the dtypes that it would have, those that stay in system RAM
    without memory.
    Names and shapes are checked before anything is read; UserError lists what is missing, of another shape, or layers of another model.
    Other tensors that the module has no place for (markers, tables of numbers) are named in a warning and left out. StopRequested
    between two tensors once the job was asked to stop.
    """
    wanted = {name: tuple(tensor.shape) for name, tensor in module.state_dict(keep_vars=True).items()}
    names = {name: rename(name) if rename else name for name in weights.header.tensors}
    _check(weights, wanted, names, optional)
    names = {name: own if own in wanted else None for name, own in names.items()}
    target = torch.device(device)
    if target.type == "meta":
        for name, own in names.items():
            if own is not None:
                stored = torch_dtype(name, weights.header.tensors[name], weights.path)
                _plan(module, own, weights.header.tensors[name].shape, stored, dtype, own in stay)
        return
    # Where tensors are cast or moved, the originals share one buffer: freed one by one they would leave holes as large as
    # the model. Where they are not, they are read into their final place.
    quantising = any(isinstance(part, TakesWeight) for part in module.modules())
    reuse = target.type != "cpu" or transform is not None or quantising or (dtype is not None and dtype != weights.main_dtype())
    reading = _Reading(weights)
    for name, stored, whole, into in weights.tensors(reuse):
        own = names[name]
        if own is None:
            continue
        home = torch.device("cpu") if own in stay else target
        if reuse and transform is None and part is None and _is_plain(module, own, stored) and name not in weights.scales:
            kept = dtype if dtype is not None and stored.is_floating_point else stored
            made = torch.empty(wanted[own], dtype=kept, device=home)
            into(made, reading.had)
            _put(module, own, made)
            continue
        original = whole()
        reading.had(original.nbytes)
        tensor, scale = original.to(target if transform is not None or quantising else home), weights.scale(name)
        if scale is not None:
            scale = scale.to(tensor.device)
        if transform is not None:
            tensor, scale = _transformed(transform, own, tensor, scale)
        _place(module, own, tensor, scale, dtype, home, original if reuse else None, part)


class _Reading:
    """Says how much of a file that takes long has been read: a text encoder of 11 GB takes minutes from a slow disk."""

    def __init__(self, weights: Weights) -> None:
        self.name, self.total, self.done, self._said = weights.path.name, weights.nbytes, 0, time.monotonic()

    def had(self, count: int) -> None:
        """So many more bytes were read. StopRequested once the job was asked to stop."""
        job.leave_if_asked(f"stopped while loading {self.name}, before there was anything to keep")
        self.done += count
        if time.monotonic() - self._said >= durations.BETWEEN_PLACES:
            self._said = time.monotonic()
            job.phase_is_at(f"{self.done / 1e9:.1f} of {self.total / 1e9:.1f} GB")


def _is_plain(module: nn.Module, name: str, stored: torch.dtype) -> bool:
    """Is a tensor only cast and moved?"""
    path, _, leaf = name.rpartition(".")
    return stored not in EIGHT_BIT_DTYPES and not (leaf == "weight" and isinstance(module.get_submodule(path), TakesWeight))


def _put(module: nn.Module, name: str, tensor: Tensor) -> None:
    """Make it the module's."""
    path, _, leaf = name.rpartition(".")
    owner = module.get_submodule(path)
    if leaf in owner._parameters:
        owner._parameters[leaf] = nn.Parameter(tensor, requires_grad=False)
    else:
        owner._buffers[leaf] = tensor


def _plan(module: nn.Module, name: str, shape: Sequence[int], stored: torch.dtype, dtype: torch.dtype | None, in_ram: bool) -> None:
    """Give the module an empty tensor as `_place` would a full one."""
    path, _, leaf = name.rpartition(".")
    owner = module.get_submodule(path)
    if isinstance(owner, TakesWeight) and leaf == "weight":
        kept = owner.dtype_of(stored)
    else:
        kept = (dtype or torch.bfloat16 if stored in EIGHT_BIT_DTYPES else dtype or stored) if stored.is_floating_point else stored
    empty = torch.empty(() if in_ram else tuple(shape), dtype=kept, device="meta").expand(tuple(shape))
    _put(module, name, empty)


def _transformed(transform: Transform, name: str, tensor: Tensor, scale: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """What `transform` makes of a weight; an fp8 weight that it does not change stays as it is."""
    if scale is None and tensor.dtype not in EIGHT_BIT_DTYPES:
        return transform(name, tensor), None
    plain = dequantised(tensor, scale, torch.float32)
    changed = transform(name, plain)
    return (tensor, scale) if changed is plain else (changed, None)


def _place(
    module: nn.Module,
    name: str,
    tensor: Tensor,
    scale: Tensor | None,
    dtype: torch.dtype | None,
    device: torch.device,
    read: Tensor | None,
    part: Callable[[str, Tensor], Tensor] | None,
) -> None:
    """Make `tensor`, or a part of it, the module's. read: what the file was read into, if that memory will be used again."""
    path, _, leaf = name.rpartition(".")
    owner = module.get_submodule(path)
    if isinstance(owner, TakesWeight) and leaf == "weight":
        weight = owner.take(tensor, scale, device)
    elif scale is not None or tensor.dtype in EIGHT_BIT_DTYPES:
        weight = dequantised(tensor, scale, dtype or torch.bfloat16)
    else:
        weight = tensor.to(dtype) if dtype is not None and tensor.is_floating_point() else tensor
    weight = weight.to(device)
    kept = weight if part is None else part(name, weight)
    if kept is weight and read is not None and weight.untyped_storage().data_ptr() == read.untyped_storage().data_ptr():
        kept = weight.clone()
    _put(module, name, kept)


def _check(weights: Weights, wanted: dict[str, tuple[int, ...]], names: dict[str, str | None], optional: Collection[str]) -> None:
    found = {own: weights.header.tensors[name].shape for name, own in names.items() if own is not None}
    problems = []
    missing = [name for name in wanted if name not in found and name not in optional]
    alien = [name for name in found if name not in wanted]
    surplus = _layers_of_another(alien, wanted, found)
    shapes = [f"{n} {list(found[n])}, needs {list(wanted[n])}" for n in found if n in wanted and found[n] != wanted[n]]
    for what, items in (
        ("missing", missing),
        ("not part of the model", alien if missing or shapes else surplus),
        ("of another shape", shapes),
    ):
        if items:
            problems.append(f"{len(items)} {what}: {', '.join(items[:_SHOWN])}{', …' if len(items) > _SHOWN else ''}")
    if problems:
        raise UserError(f"{weights.path} does not fit this model. Tensors {'; '.join(problems)}")
    if alien:
        shown = ", ".join(alien[:_SHOWN]) + (", ..." if len(alien) > _SHOWN else "")
        logger.warning(
            "%s: %s not part of the model and left out: %s", weights.path, counted(len(alien), "tensor is", "tensors are"), shown
        )


def _layers_of_another(alien: Sequence[str], wanted: Collection[str], shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Those of `alien` that show another architecture: weights within the model's own modules, or several matrices next to them."""
    own = {name.partition(".")[0] for name in wanted}
    inside = [name for name in alien if name.partition(".")[0] in own and name.endswith((".weight", ".bias"))]
    matrices = [name for name in alien if len(shapes[name]) > 1]
    return inside if inside or len(matrices) < 2 else matrices


def read_pickled(path: Path) -> dict[str, Tensor]:
    """The tensors of a PyTorch file (.pth, .pt), loaded as plain weights: nothing in it is executed. Wrappers such as "state_dict" are
    taken off. UserError when it is damaged or holds anything but plain data."""
    try:
        check_ordinary(path)
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except Exception as error:  # torch raises many types for damaged or unsafe pickles
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{path} cannot be loaded as plain PyTorch weights ({first[:200]}); use a .safetensors file") from error
    for wrapper in ("state_dict", "module", "model"):
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    tensors = {str(k): v for k, v in content.items() if isinstance(v, Tensor)} if isinstance(content, dict) else {}
    if not tensors:
        raise UserError(f"{path} holds no tensors")
    odd = next((name for name, tensor in tensors.items() if tensor.layout != torch.strided or tensor.is_quantized), None)
    if odd is not None:
        raise UserError(f"{path}: {odd} is stored as a sparse or quantised tensor, which is not read; use a .safetensors file")
    return tensors


def _open_pickle(path: Path, prefixes: Sequence[str]) -> Weights:
    tensors = {**read_pickled(path), **_scales_beside(path)}
    prefix = common_prefix(tensors, prefixes)
    tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    dtypes = {name: str(tensor.dtype).removeprefix("torch.") for name, tensor in tensors.items()}
    infos = {name: TensorInfo(DTYPE_NAMES.get(dtypes[name], dtypes[name]), tuple(t.shape), 0, 0) for name, t in tensors.items()}
    sorted_ = quantised.sort(infos, path)
    scales = {weight: tensors[scale] for weight, scale in sorted_.scales.items()}
    return Weights(path, Header(sorted_.tensors, {}), (), {name: tensors[name] for name in sorted_.tensors}, scales)


def _scales_beside(path: Path) -> dict[str, Tensor]:
    """HunyuanVideo's published fp8 model has its scales in a second file, `..._map.pt`, by layer (github.com/Tencent/HunyuanVideo,
    `hyvideo/modules/fp8_optimization.py`)."""
    beside = path.with_name(f"{path.stem}_map.pt")
    if not beside.is_file():
        return {}
    return {f"{layer}.scale_weight": scale for layer, scale in read_pickled(beside).items()}


def _sorted(path: Path, sources: tuple[tuple[Path, dict[str, TensorInfo]], ...], metadata: dict[str, str]) -> Weights:
    """The opened safetensors parts, scales and markers apart from the model's tensors."""
    everything = {name: info for _, tensors in sources for name, info in tensors.items()}
    sorted_ = quantised.sort(everything, path)
    place = {name: part for part, tensors in sources for name in tensors}
    scales = {weight: (place[scale], scale, everything[scale]) for weight, scale in sorted_.scales.items()}
    kept = tuple((part, {name: info for name, info in tensors.items() if name in sorted_.tensors}) for part, tensors in sources)
    return Weights(path, Header(sorted_.tensors, metadata), kept, scales=scales)
