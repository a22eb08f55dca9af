"""Run by ComfyUI's python in its folder: load LoRA files with ComfyUI's own loader into tiny models, and print what did not fit.

usage: comfyui_loads.py MODEL[@STRENGTH]=FILE...
prints JSON: file -> {"loaded": patched weights, "unmatched": [names], "moved": changed weights}, and writes FILE.patched: each patched
weight as before.NAME and after.NAME
"""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path.cwd()))
WANTED = [word.split("=", 1) for word in sys.argv[1:]]
sys.argv = ["main.py", "--cpu"]

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()

import comfy.lora  # noqa: E402
import comfy.lora_convert  # noqa: E402
import comfy.model_patcher  # noqa: E402
import comfy.supported_models  # noqa: E402
import comfy.utils  # noqa: E402
import safetensors.torch  # noqa: E402
import torch  # noqa: E402

WAN = {"image_model": "wan2.1", "model_type": "t2v", "dim": 32, "ffn_dim": 64, "num_heads": 2, "num_layers": 2, "text_dim": 32,
       "freq_dim": 64, "in_dim": 16, "out_dim": 16, "text_len": 24}  # fmt: skip
HUNYUAN = {"image_model": "hunyuan_video", "in_channels": 16, "out_channels": 16, "vec_in_dim": 32, "context_in_dim": 32, "hidden_size": 32,
           "mlp_ratio": 4.0, "num_heads": 2, "depth": 2, "depth_single_blocks": 2, "axes_dim": [4, 6, 6], "theta": 256,
           "patch_size": [1, 2, 2], "qkv_bias": True, "guidance_embed": True, "byt5": False, "meanflow": False,
           "use_cond_type_embedding": False, "vision_in_dim": None, "meanflow_sum": False}  # fmt: skip
MODELS = {
    "wan": (comfy.supported_models.WAN21_T2V, WAN),
    "wan_i2v": (comfy.supported_models.WAN21_I2V, {**WAN, "model_type": "i2v", "in_dim": 36}),
    "hv": (comfy.supported_models.HunyuanVideo, HUNYUAN),
}


def loads(path: str, strength: float, patcher: Any, key_map: dict[str, str]) -> dict[str, Any]:
    """What ComfyUI makes of one file."""
    unmatched: list[str] = []

    class Listen(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            unmatched.append(record.getMessage())

    listener = Listen(logging.WARNING)
    logging.getLogger().addHandler(listener)
    state = comfy.lora_convert.convert_lora(comfy.utils.load_torch_file(path, safe_load=True))
    patches = comfy.lora.load_lora(state, key_map)
    logging.getLogger().removeHandler(listener)
    clone = patcher.clone()
    taken = set(clone.add_patches(patches, strength))
    unmatched += [f"not taken: {key}" for key in patches if key not in taken]
    weights = patcher.model.state_dict()
    moved, found = 0, {}
    for key, patch in clone.patches.items():
        before = weights[key].float()
        after = comfy.lora.calculate_weight(patch, before.clone(), key)
        moved += not torch.equal(after, before)
        found |= {f"before.{key}": before.contiguous(), f"after.{key}": after.contiguous()}
    safetensors.torch.save_file(found, f"{path}.patched")
    return {"loaded": len(patches), "unmatched": unmatched, "moved": moved}


def patcher_of(name: str) -> Any:
    """A tiny model with random weights."""
    kind, config = MODELS[name]
    settings = kind(dict(config))
    settings.set_inference_dtype(torch.float32, None)
    torch.manual_seed(0)
    model = settings.get_model({}, "", device="cpu")
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    return comfy.model_patcher.ModelPatcher(model, torch.device("cpu"), torch.device("cpu"))


def main() -> None:
    results = {}
    wanted = [(*model.partition("@")[::2], path) for model, path in WANTED]
    for name in dict.fromkeys(model for model, _, _ in wanted):
        patcher = patcher_of(name)
        key_map = comfy.lora.model_lora_keys_unet(patcher.model, {})
        results |= {path: loads(path, float(strength or 1), patcher, key_map) for model, strength, path in wanted if model == name}
    print(json.dumps(results))


if __name__ == "__main__":
    main()
