"""The alphas of LoRA files that have none in their tensors: PEFT's settings, in the metadata that diffusers writes
(`lora_adapter_metadata`) or in the `adapter_config.json` next to PEFT's `adapter_model.safetensors`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..documents import parse_json
from ..errors import UserError
from ..texts import read_text
from ..weights.arrays import TensorFile

METADATA = "lora_adapter_metadata"
_DEFAULT_ALPHA = 8  # LoraConfig's


@dataclass(frozen=True)
class PeftAlphas:
    """PEFT's settings. Names in diffusers' metadata begin with the component they are for (`transformer.lora_alpha`)."""

    settings: Mapping[str, Any]
    source: str

    @classmethod
    def of(cls, file: TensorFile) -> PeftAlphas | None:
        """None for a file without; UserError where they cannot be read, because the strength would be a guess."""
        text, source = file.header.metadata.get(METADATA), f"the metadata {METADATA} of {file.path}"
        beside = file.path.with_name("adapter_config.json")
        try:
            if text is None and file.path.name == "adapter_model.safetensors" and beside.is_file():
                text, source = read_text(beside), str(beside)
            settings = {} if text is None else parse_json(text, dict)
        except (OSError, ValueError) as error:
            raise UserError(f"{source} cannot be read ({error}): the LoRA's alpha stands there") from error
        return cls(settings, source) if settings else None

    def alpha(self, prefix: str, layer: str, rank: int) -> float | None:
        """What divided by the rank is the scale of a layer's product: lora_alpha, times the root of the rank with `use_rslora` (arXiv
        2312.03732: alpha / sqrt(rank)). None where the settings have no alpha. As PEFT, `alpha_pattern` goes by the ends of names.

        rank: 0 for a LoKr of two whole matrices, which has none. UserError where PEFT would scale it nevertheless.
        """
        usual = next((alpha for name in ("lora_alpha", "alpha") if (alpha := self._setting(prefix, name)) is not None), None)
        root = bool(self._setting(prefix, "use_rslora"))
        patterns = self._setting(prefix, "alpha_pattern") or {}
        try:
            found = next((alpha for name, alpha in patterns.items() if re.fullmatch(rf"(.*\.)?({name})", layer)), usual)
            alpha = _DEFAULT_ALPHA if found is None and root else found
            if not rank and alpha is not None and alpha != (size := self._setting(prefix, "r")):
                raise UserError(f"{self.source} scales {layer} by {alpha} / {size}, which a LoKr of whole matrices has no place for")
            return None if alpha is None else float(alpha) * (rank**0.5 if root else 1.0)
        except (ValueError, TypeError, AttributeError, re.error, OverflowError) as error:
            raise UserError(f"{self.source} has no usable alpha for {layer} ({error})") from error

    def _setting(self, prefix: str, name: str) -> Any:
        component = "transformer_2" if "transformer_2" in prefix else "transformer"
        return next((self.settings[key] for key in (f"{component}.{name}", name) if key in self.settings), None)
