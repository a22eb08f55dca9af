"""ComfyUI-MusubiTuner: train video LoRAs inside ComfyUI. Registers the nodes; imports nothing heavy, works without ComfyUI."""

from __future__ import annotations

from typing import Any

WEB_DIRECTORY = "./web"


async def comfy_entrypoint() -> Any:
    """Called by ComfyUI once its own modules are loaded."""
    from .nodes.comfy import MusubiTunerExtension

    return MusubiTunerExtension()
