"""What a LoRA file says about itself, when another is made of it. No torch."""

from __future__ import annotations

from collections.abc import Mapping

from ..architectures import cards
from . import peft


def metadata_for(metadata: Mapping[str, str], architecture: str | None) -> dict[str, str]:
    """The metadata with the name of `architecture` where it names one; as it is without. PEFT's alphas are in the tensors now."""
    metadata = {key: value for key, value in metadata.items() if key != peft.METADATA}
    if architecture is None:
        return metadata
    card = cards()[architecture]
    named = {
        "ss_base_model_version": card.name,
        "ss_network_module": card.network_module,
        "modelspec.architecture": f"{card.modelspec}/lora",
        "modelspec.implementation": card.implementation,
    }
    if metadata.get("ss_base_model_version") == card.name or metadata.get("ss_network_module", "").endswith(("loha", "lokr")):
        del named["ss_network_module"]
    return {**metadata, **{key: value for key, value in named.items() if key in metadata}}
