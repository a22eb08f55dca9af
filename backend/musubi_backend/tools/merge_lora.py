"""`merge_lora`: LoRAs of any kind and layout, with strengths, added to the weights of a transformer.

Tensor by tensor from file to file; names, dtypes and the way fp8 weights are scaled stay those of the base. What no LoRA changes is
copied byte for byte.
"""

from __future__ import annotations

import contextlib
import logging
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from .. import job
from ..device import pick_device
from ..errors import UserError
from ..lora.layer_names import naming_of
from ..lora.merging import LoRAMerge
from ..lora.requantising import requantised
from ..memory.fp8 import dequantised
from ..weights import quantised
from ..weights.arrays import TensorFile, as_bytes, of_bytes
from ..weights.loader import read_pickled
from ..weights.quantised import EIGHT_BIT_FLOATS
from ..weights.recognise import PICKLE_SUFFIXES, PREFIXES, recognise
from ..weights.safetensors_file import TensorInfo, bytes_of, dtype_name, split_files
from ..weights.streamed_file import Spec, Target, refuse_inputs, write

logger = logging.getLogger(__name__)


def run(args: Namespace) -> None:
    """Merge `args.lora_weight` into `args.dit`. UserError for files that do not fit each other."""
    files = list(args.lora_weight or [])
    refuse_inputs([args.save_merged_model], [args.dit, *files], "--save_merged_model")
    device = pick_device(args.device)
    logger.info("Using device: %s", device)
    logger.info("Loading DiT model from %s", args.dit)
    job.phase("loading the transformer")
    with Base.open(args.dit) as base:
        refuse_inputs([args.save_merged_model], split_files(base.path), "--save_merged_model")
        merge = _merge(args, base, files)
        changed = {name for name in base.specs if merge is not None and merge.touches(base.own(name))}
        logger.info("Saving merged model to %s", args.save_merged_model)
        target = Target(Path(args.save_merged_model), base.metadata)
        with _one_thread_each():
            write([target], base.specs, lambda name: [_tensor(base, merge, name, changed, device)], "merging", args.cpu_threads)
    print(f"{len(changed)} of {len(base.specs)} tensors changed", flush=True)
    logger.info("Merged model saved")


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


@contextlib.contextmanager
def _one_thread_each() -> Iterator[None]:
    """Tensors are merged side by side: threads within one would only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _model_file(path: Path) -> Path:
    """`path`, or the one model in a folder. UserError where a folder holds none or several."""
    if not path.is_dir() or split_files(path) != [path]:
        return path
    models = sorted({split_files(file)[0] for file in path.glob("*.safetensors")})
    if len(models) != 1:
        raise UserError(f"--dit: {path} holds {len(models) or 'no'} models; name the file")
    return models[0]


def _merge(args: Namespace, base: Base, files: list[str]) -> LoRAMerge | None:
    if not files:
        return None
    kind = recognise(base.path)
    if kind is not None and not kind.id.endswith(("_transformer", "_transformer_diffusers")):
        raise UserError(f"--dit: {base.path} is a {kind}; a transformer is expected")
    multipliers = [*args.lora_multiplier, *[1.0] * (len(files) - len(args.lora_multiplier))]
    for path, multiplier in zip(files, multipliers, strict=False):
        logger.info("Loading LoRA weights from %s with multiplier %s", path, multiplier)
    merge = LoRAMerge(files, multipliers, architecture=base.naming(), skip_mismatched=args.skip_mismatched)
    try:
        merge.check({base.own(name): shape for name, (_, shape) in base.specs.items() if name not in base.scaled})
    except UserError as error:
        raise UserError(f"{error} (--dit {base.path})") from error
    logger.info("Merging LoRA weights to DiT model")
    return merge


def _tensor(base: Base, merge: LoRAMerge | None, name: str, changed: set[str], device: torch.device) -> memoryview:
    if merge is None or name not in changed:
        return base.data(name)
    weight_name = base.scaled.get(name, name)
    weight, scale_name = base.tensor(weight_name), base.scales.get(weight_name)
    if base.specs[weight_name][0] not in EIGHT_BIT_FLOATS:
        return bytes_of(merge.rounded(base.own(name), weight.to(device)).cpu())
    scale = base.tensor(scale_name) if scale_name else None
    dense = merge(base.own(name), dequantised(weight, scale, torch.float32).to(device)).cpu()
    stored, new_scale = requantised(dense, scale, weight.dtype)
    return bytes_of(new_scale if name in base.scaled and new_scale is not None else stored)
