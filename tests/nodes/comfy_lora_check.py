"""Run by ComfyUI's python inside its checkout: does ComfyUI's own loader find a place for every tensor of a LoRA?

    python comfy_lora_check.py MODEL.safetensors LORA.safetensors

The model is given from the file by ComfyUI's detection; prints JSON: how many layers were patched, which keys were left, and which patches
do not have the shape of the file's layer.
"""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path

sys.path.insert(0, str(Path.cwd()))
model_file, lora_file = sys.argv[1:]
sys.argv = [sys.argv[0], "--cpu"]

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()

import comfy.lora  # noqa: E402
import comfy.lora_convert  # noqa: E402
import comfy.model_detection  # noqa: E402
import comfy.utils  # noqa: E402


class Left(logging.Handler):
    """What the loader says it could not place."""

    def __init__(self) -> None:
        super().__init__()
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


left = Left()
logging.getLogger().addHandler(left)
weights, metadata = comfy.utils.load_torch_file(model_file, return_metadata=True)
config = comfy.model_detection.model_config_from_unet(weights, "", metadata=metadata)
model = config.get_model(weights, "")
keys = comfy.lora.model_lora_keys_unet(model, {})
lora = comfy.lora_convert.convert_lora(comfy.utils.load_torch_file(lora_file))
left.messages.clear()
patches = comfy.lora.load_lora(lora, keys)
file = {f"diffusion_model.{name}": weight for name, weight in config.process_unet_state_dict(dict(weights)).items()}
misfits = []
for key, patch in patches.items():
    up, down = patch.weights[:2]
    weight = file[key if isinstance(key, str) else key[0]]
    if up.flatten(1).shape[0] != weight.shape[0] or down.flatten(1).shape[1] != weight.flatten(1).shape[1]:
        misfits.append(str(key))
print(json.dumps({"model": type(model).__name__, "patches": len(patches), "left": left.messages, "misfits": misfits}))
