"""`merge_lora`: LoRAs of any kind and layout, with strengths, added to the weights of a transformer.

Tensor by tensor from file to file; names, dtypes and the way fp8 weights are scaled stay those of the base. What no LoRA changes is
copied byte for byte.
"""

from __future__ import annotations

import contextlib
import logging
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

import torch

from .. import job
from ..device import pick_device
from ..errors import UserError
from ..lora.base import Base
from ..lora.merging import LoRAMerge
from ..weights.quantised import EIGHT_BIT_FLOATS
from ..weights.recognise import recognise
from ..weights.safetensors_file import bytes_of, split_files
from ..weights.scales import dequantised, requantised
from ..weights.streamed_file import Target, refuse_inputs, write
from .settings import MergeSettings

logger = logging.getLogger(__name__)


def run(args: Namespace) -> None:
    """Merge `--lora_weight` into `--dit`. UserError for files that do not fit each other."""
    settings = MergeSettings.read(args)
    files = list(settings.lora_weight or ())
    refuse_inputs([settings.save_merged_model], [settings.dit, *files], "--save_merged_model")
    device = pick_device(settings.device)
    logger.info("Using device: %s", device)
    logger.info("Loading DiT model from %s", settings.dit)
    job.phase("loading the transformer")
    with Base.open(settings.dit) as base:
        refuse_inputs([settings.save_merged_model], split_files(base.path), "--save_merged_model")
        merge = _merge(settings, base, files)
        changed = {name for name in base.specs if merge is not None and merge.touches(base.own(name))}
        logger.info("Saving merged model to %s", settings.save_merged_model)
        target = Target(Path(settings.save_merged_model), base.metadata)
        with _one_thread_each():
            write([target], base.specs, lambda name: [_tensor(base, merge, name, changed, device)], "merging", settings.cpu_threads)
    print(f"{len(changed)} of {len(base.specs)} tensors changed", flush=True)
    logger.info("Merged model saved")


@contextlib.contextmanager
def _one_thread_each() -> Iterator[None]:
    """Tensors are merged side by side: threads within one would only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _merge(settings: MergeSettings, base: Base, files: list[str]) -> LoRAMerge | None:
    if not files:
        return None
    kind = recognise(base.path)
    if kind is not None and not kind.id.endswith(("_transformer", "_transformer_diffusers")):
        raise UserError(f"--dit: {base.path} is a {kind}; a transformer is expected")
    multipliers = [*settings.lora_multiplier, *[1.0] * (len(files) - len(settings.lora_multiplier))]
    for path, multiplier in zip(files, multipliers, strict=False):
        logger.info("Loading LoRA weights from %s with multiplier %s", path, multiplier)
    merge = LoRAMerge(files, multipliers, architecture=base.naming(), skip_mismatched=settings.skip_mismatched)
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
