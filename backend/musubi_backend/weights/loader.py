"""Streaming load: tensors go from the file into the module one by one, so the peak is the model plus one tensor.

Build the module on the "meta" device first: nothing is allocated or initialised twice.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ..errors import UserError
from .recognise import PICKLE_SUFFIXES
from .safetensors_file import DTYPE_NAMES, TORCH_DTYPES, Header, PathLike, TensorInfo, read_header, read_tensor, split_files

Transform = Callable[[str, Tensor], Tensor]
"""(name, tensor in the file's dtype, on the target device) -> tensor, e.g. with a LoRA merged."""

_QUANTISED = re.compile(r".*\.(scale_weight|scale_input|weight_scale|input_scale|comfy_quant|qweight|absmax)(\..*)?|(.*\.)?scaled_fp8")
_SHOWN = 4


@dataclass(frozen=True)
class Weights:
    """An opened weight file: names (without prefix), shapes and metadata; tensors are read when iterated."""

    path: Path
    header: Header
    sources: tuple[tuple[Path, dict[str, TensorInfo]], ...]
    pickled: dict[str, Tensor] | None = None

    def tensors(self, reuse: bool = False) -> Iterator[tuple[str, Tensor]]:
        """(name, tensor) in storage order. reuse: all in the same memory, each valid until the next one."""
        if self.pickled is not None:
            yield from self.pickled.items()
            return
        largest = max((info.end - info.start for _, tensors in self.sources for info in tensors.values()), default=0)
        scratch = torch.empty(largest, dtype=torch.uint8) if reuse else None
        for path, tensors in self.sources:
            with path.open("rb") as file:
                for name, info in sorted(tensors.items(), key=lambda item: item[1].start):
                    yield name, read_tensor(file, name, info, path, scratch)

    def main_dtype(self) -> torch.dtype | None:
        """The dtype most of the tensors have; None when PyTorch has no such dtype."""
        counts = Counter(info.dtype for info in self.header.tensors.values())
        name = TORCH_DTYPES.get(counts.most_common(1)[0][0]) if counts else None
        return getattr(torch, name) if name else None


def open_weights(path: PathLike, prefixes: Sequence[str] = ()) -> Weights:
    """Read the headers of a model in one or several files, or a PyTorch file (.pth, .pt).

    prefixes: of those, the first that any name has is removed; other names are left out (they belong to other models in the
    same file). UserError for unreadable files and for 8-bit layouts, which must not load as if they were plain weights.
    """
    file_path = Path(path)
    if file_path.suffix.lower() in PICKLE_SUFFIXES:
        weights = _open_pickle(file_path, prefixes)
    else:
        parts = [(part, read_header(part)) for part in split_files(file_path)]
        prefix = _prefix((name for _, header in parts for name in header.tensors), prefixes)
        sources = tuple((part, _strip(header.tensors, prefix)) for part, header in parts)
        merged = {name: info for _, tensors in sources for name, info in tensors.items()}
        weights = Weights(file_path, Header(merged, {k: v for _, header in parts for k, v in header.metadata.items()}), sources)
    _refuse_quantised(weights)
    return weights


def load_into(
    module: nn.Module,
    weights: Weights,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    transform: Transform | None = None,
    rename: Callable[[str], str | None] | None = None,
    optional: Collection[str] = (),
) -> None:
    """Fill the parameters and buffers of `module` (best built on "meta"); they become frozen tensors on `device`.

    dtype: what floating point tensors are cast to; None keeps the file's. transform runs before that cast. rename: file name
    -> module name, None to leave a tensor out. optional: names that may be missing.
    Names and shapes are checked before anything is read; UserError lists what is missing, surplus or of another shape.
    """
    wanted = {name: tuple(tensor.shape) for name, tensor in module.state_dict(keep_vars=True).items()}
    names = {name: rename(name) if rename else name for name in weights.header.tensors}
    _check(weights, wanted, names, optional)
    target = torch.device(device)
    # Where tensors are cast or moved, the originals share one buffer: freed one by one they would leave holes as large as
    # the model. Where they are not, they are read into their final place.
    reuse = target.type != "cpu" or transform is not None or (dtype is not None and dtype != weights.main_dtype())
    for name, original in weights.tensors(reuse):
        own = names[name]
        if own is None:
            continue
        tensor = original.to(target)
        if transform is not None:
            tensor = transform(own, tensor)
        if dtype is not None and tensor.is_floating_point():
            tensor = tensor.to(dtype)
        if reuse and tensor.untyped_storage().data_ptr() == original.untyped_storage().data_ptr():
            tensor = tensor.clone()
        _assign(module, own, tensor)


def _assign(module: nn.Module, name: str, tensor: Tensor) -> None:
    path, _, leaf = name.rpartition(".")
    owner = module.get_submodule(path)
    if leaf in owner._parameters:
        owner._parameters[leaf] = nn.Parameter(tensor, requires_grad=False)
    else:
        owner._buffers[leaf] = tensor


def _check(weights: Weights, wanted: dict[str, tuple[int, ...]], names: dict[str, str | None], optional: Collection[str]) -> None:
    found = {own: weights.header.tensors[name].shape for name, own in names.items() if own is not None}
    problems = []
    missing = [name for name in wanted if name not in found and name not in optional]
    surplus = [name for name in found if name not in wanted]
    shapes = [f"{n} {list(found[n])}, needs {list(wanted[n])}" for n in found if n in wanted and found[n] != wanted[n]]
    for what, items in (("missing", missing), ("not part of the model", surplus), ("of another shape", shapes)):
        if items:
            problems.append(f"{len(items)} {what}: {', '.join(items[:_SHOWN])}{', …' if len(items) > _SHOWN else ''}")
    if problems:
        raise UserError(f"{weights.path} does not fit this model. Tensors {'; '.join(problems)}")


def read_pickled(path: Path) -> dict[str, Tensor]:
    """The tensors of a PyTorch file (.pth, .pt), loaded as plain weights: nothing in it is executed. Wrappers such as "state_dict" are
    taken off. UserError when it is damaged or holds anything but plain data."""
    try:
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
    return tensors


def _open_pickle(path: Path, prefixes: Sequence[str]) -> Weights:
    tensors = read_pickled(path)
    prefix = _prefix(tensors, prefixes)
    tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    dtypes = {name: str(tensor.dtype).removeprefix("torch.") for name, tensor in tensors.items()}
    infos = {name: TensorInfo(DTYPE_NAMES.get(dtypes[name], dtypes[name]), tuple(t.shape), 0, 0) for name, t in tensors.items()}
    return Weights(path, Header(infos, {}), (), tensors)


def _prefix(names: Iterator[str] | Collection[str], prefixes: Sequence[str]) -> str:
    known = list(names)
    return next((prefix for prefix in prefixes if any(name.startswith(prefix) for name in known)), "")


def _strip(tensors: dict[str, TensorInfo], prefix: str) -> dict[str, TensorInfo]:
    return {name.removeprefix(prefix): info for name, info in tensors.items() if name.startswith(prefix)}


def _refuse_quantised(weights: Weights) -> None:
    for name, info in weights.header.tensors.items():
        if info.dtype.startswith(("F8", "F4", "F6")) or _QUANTISED.fullmatch(name):
            raise UserError(
                f"{weights.path} holds quantised weights ({name}, {info.dtype}), which cannot be loaded yet; "
                "use the bf16 or fp16 version of this model"
            )
