"""`convert_lora`: a LoRA file from any layout into musubi-tuner's or ComfyUI's, saying what was found, converted and left.

Without torch, tensor by tensor. `--target default` is musubi-tuner's layout, `--target other` dotted names with lora_A and lora_B.
"""

from __future__ import annotations

import logging
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

from .. import events, job
from ..architectures import cards, same_layers
from ..counted import counted
from ..errors import UserError
from ..lora import layer_names
from ..lora.layouts import COMFY_PREFIX, LoRAFile, arranged, comfy_tensors, musubi_tensors
from ..lora.metadata import metadata_for
from ..lora.musubi_dots import musubi_dotted
from ..lora.parts import Part, read
from ..lora.shapes import ALPHA, LORA
from ..weights.arrays import as_bytes
from ..weights.streamed_file import MODEL_HASH, Target, refuse_inputs, write
from .settings import ConvertSettings

logger = logging.getLogger(__name__)

_SHOWN = 4


def run(args: Namespace) -> None:
    """Convert `--input` into `--output`. UserError when it is no LoRA or cannot be written as asked."""
    settings = ConvertSettings.read(args)
    refuse_inputs([settings.output], [settings.input], "--output")
    logger.info("loading %s", settings.input)
    lora = LoRAFile.open(settings.input, settings.expert or "")
    naming = target_naming(lora, settings.architecture, settings.names)
    logger.info("converting to %s", settings.target)
    logger.info("estimated type: %s", next((kind for kind in sorted(lora.kinds, key=lora.kinds.__getitem__, reverse=True) if kind), None))
    tensors = dict(_tensors(lora, naming, settings))
    if settings.keep_unknown:
        tensors |= {name: read(lora.file, name) for name in lora.left}
    report(lora, naming, tensors, settings)
    logger.info("saving to %s", settings.output)
    specs = {name: (part.dtype, part.shape) for name, part in tensors.items()}
    target = Target(Path(settings.output), metadata_for(lora.metadata, settings.architecture), hashed=MODEL_HASH in lora.metadata)
    write([target], specs, lambda name: [as_bytes(tensors[name].make())], "converting", settings.cpu_threads)
    lora.close()
    logger.info("done")


def target_naming(lora: LoRAFile, architecture: str | None, names: str) -> str:
    """How layers are to be named: as the architecture does itself, or as diffusers does. UserError for what does not go together."""
    native = lora.native if architecture is None else architecture
    if lora.native != native and (not lora.native or layer_names.table_of(lora.native) is not layer_names.table_of(native)):
        shared = "".join(f"; only {' and '.join(card.title for card in group)} share their layers" for group in same_layers())
        raise UserError(f"{lora.file.path} is for {_title(lora.native)} and cannot become one for {_title(native)}{shared}")
    return native if names == "original" else layer_names.diffusers(native)


def report(lora: LoRAFile, naming: str, tensors: dict[str, Part], settings: ConvertSettings) -> None:
    """Say (and tell the job) what the file was, what became of it, and what was left."""
    kept = "kept as they are" if settings.keep_unknown else "left out"
    left = len(lora.left) if settings.keep_unknown else 0
    unplaced = sorted({layer.dotted for layer in lora.layers if layer.found is None})
    lines = [
        f"detected: {lora.title}",
        f"converted: {counted(len(lora.layers), 'layer')} to {counted(len(tensors) - left, 'tensor')}"
        + (f", named as {layer_names.title_of(naming)}" if naming else ""),
        f"left: {counted(len(lora.left), 'tensor')} {kept} ({_first(lora.left)})" if lora.left else "left: nothing",
    ]
    if unplaced:
        lines.append(f"names this program does not know, kept: {counted(len(unplaced), 'layer')} ({_first(unplaced)})")
    for line in lines:
        print(line, flush=True)
    for key in lora.left:
        logger.warning("unexpected key: %s, %s", key, kept)
    job.emit(events.LoRAReport(tuple(lines)))


def _tensors(lora: LoRAFile, naming: str, settings: ConvertSettings) -> Iterator[tuple[str, Part]]:
    needs_alpha = lora.expects_alphas  # other layouts have none
    for path, weights in arranged(lora, naming):
        if settings.target == "default":
            yield from musubi_tensors(path, weights)
            continue
        if needs_alpha and weights.kind == LORA and ALPHA not in weights.parts:
            logger.warning("missing alpha for %s: it counts as the rank", path)
        name = musubi_dotted(path.replace(".", "_")) if settings.musubi_names else path
        yield from comfy_tensors(name, weights, settings.diffusers_prefix or COMFY_PREFIX)


def _title(naming: str) -> str:
    return cards()[naming].title if naming in cards() else (layer_names.title_of(naming) or "an unknown architecture")


def _first(names: list[str]) -> str:
    return f"{', '.join(names[:_SHOWN])}{', …' if len(names) > _SHOWN else ''}"
