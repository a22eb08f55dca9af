"""The weights of a transformer that the tools merge into, or compare, as they lie in its files."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from ..errors import UserError
from ..weights import quantised
from ..weights.arrays import TensorFile, as_bytes, of_bytes
from ..weights.loader import read_pickled
from ..weights.recognise import PICKLE_SUFFIXES, PREFIXES
from ..weights.safetensors_file import TensorInfo, bytes_of, dtype_name, split_files
from ..weights.streamed_file import Spec
from .layer_names import naming_of


@dataclass
class Base:
    """The opened weights of a transformer in one or several files, with their own names.

    scales: the scale's name by its fp8 weight's, and back in `scaled`.
    """

    path: Path
    specs: dict[str, Spec] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)
    scales: dict[str, str] = field(default_factory=dict)
    scaled: dict[str, str] = field(default_factory=dict)
    _files: dict[str, TensorFile] = field(default_factory=dict)
    _pickled: dict[str, Tensor] = field(default_factory=dict)

    @classmethod
    @contextlib.contextmanager
    def open(cls, path: str | Path) -> Iterator[Base]:
        """UserError for what cannot be read, and for quantised weights other than fp8."""
        base = cls(_model_file(Path(path)))
        with contextlib.ExitStack() as stack:
            if base.path.suffix.lower() in PICKLE_SUFFIXES:
                base._pickled = read_pickled(base.path)
                base.specs = {name: (dtype_name(tensor.dtype), tuple(tensor.shape)) for name, tensor in base._pickled.items()}
            for part in [] if base._pickled else split_files(base.path):
                file = stack.enter_context(TensorFile(part))
                base.specs |= {name: (info.dtype, info.shape) for name, info in file.tensors.items()}
                base.metadata |= file.header.metadata
                base._files |= dict.fromkeys(file.tensors, file)
            infos = {name: TensorInfo(dtype, shape, 0, 0) for name, (dtype, shape) in base.specs.items()}
            base.scales = quantised.sort(infos, base.path).scales
            base.scaled = {scale: weight for weight, scale in base.scales.items()}
            yield base

    def own(self, name: str) -> str:
        """The name without the prefix that says which model of a file it belongs to; for a scale, its weight's."""
        name = self.scaled.get(name, name)
        return next((name.removeprefix(prefix) for prefix in PREFIXES if name.startswith(prefix)), name)

    def naming(self) -> str:
        """How its layers are named; "" when no table has them."""
        return naming_of(self.own(name).rpartition(".")[0] for name in self.specs)

    def tensor(self, name: str) -> Tensor:
        """A tensor in memory of its own."""
        return self._pickled[name].clone() if self._pickled else of_bytes(self._files[name].array(name), self.specs[name][0])

    def data(self, name: str) -> memoryview:
        return bytes_of(self._pickled[name]) if self._pickled else as_bytes(self._files[name].array(name))


def _model_file(path: Path) -> Path:
    """`path`, or the one model in a folder. UserError where a folder holds none or several."""
    if not path.is_dir() or split_files(path) != [path]:
        return path
    models = sorted({split_files(file)[0] for file in path.glob("*.safetensors")})
    if len(models) != 1:
        raise UserError(f"--dit: {path} holds {len(models) or 'no'} models; name the file")
    return models[0]
