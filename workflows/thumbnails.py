"""Draws the images that ComfyUI shows in its list of templates: `python workflows/thumbnails.py`, with the environment's python.

ComfyUI looks for `<name>.jpg` next to `<name>.json`. An image is the workflow from far away, under its title.
"""

from __future__ import annotations

import importlib
import json
import re
import runpy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

HERE = Path(__file__).resolve().parent
SIZE, MARGIN, HEADER = (480, 300), 28, 96
GROUND, NODE, LINE, INK = "#15181c", "#3b4048", "#8fa3b0", "#f2f4f5"
SPELLED = {"lora": "LoRA", "ema": "EMA", "app": "(app)", "start here": "(start here)", "post hoc": "post-hoc"}


def title(name: str, models: Mapping[str, str]) -> str:
    """A template's file name in words. models: how the names of models that it may begin with are written."""
    model = max((known for known in models if name.startswith(f"{known}_")), key=len, default="")
    words = name[len(model) :].replace(".", "_").replace("_", " ").strip()
    for word, written in SPELLED.items():
        words = re.sub(rf"\b{word}\b", written, words)
    return f"{models[model]} {words}" if model else words[0].upper() + words[1:]


def draw(words: str, workflow: dict[str, Any]) -> Image.Image:
    """The image of a workflow under its title; of one with a subgraph, what is folded into it."""
    image = Image.new("RGB", SIZE, GROUND)
    pen = ImageDraw.Draw(image)
    folded = (workflow.get("definitions") or {}).get("subgraphs")
    graph = folded[0] if folded else workflow
    nodes = [node for node in graph["nodes"] if node["type"] != "MarkdownNote"]
    frames = [(group["bounding"], group["color"]) for group in graph["groups"]]
    left, top = min(box[0] for box, _ in frames), min(box[1] for box, _ in frames)
    width = max(box[0] + box[2] for box, _ in frames) - left
    height = max(box[1] + box[3] for box, _ in frames) - top
    scale = min((SIZE[0] - 2 * MARGIN) / width, (SIZE[1] - HEADER - MARGIN) / height)
    shift = (SIZE[0] - width * scale) / 2

    def place(x: float, y: float, w: float, h: float) -> tuple[float, float, float, float]:
        return (
            shift + (x - left) * scale,
            HEADER + (y - top) * scale,
            shift + (x - left + w) * scale,
            HEADER + (y - top + h) * scale,
        )

    for box, colour in frames:
        pen.rounded_rectangle(place(*box), 4, fill=_mixed(colour), outline=colour, width=2)
    for node in nodes:
        pen.rounded_rectangle(place(*node["pos"], *node["size"]), 3, fill=NODE, outline=LINE)
    size = 34
    while pen.textlength(words, font=ImageFont.load_default(size)) > SIZE[0] - 2 * MARGIN:
        size -= 1
    pen.text((SIZE[0] / 2, HEADER / 2), words, fill=INK, font=ImageFont.load_default(size), anchor="mm")
    return image


def _mixed(colour: str) -> tuple[int, ...]:
    """A third of a colour over the ground."""
    pairs = zip(bytes.fromhex(colour[1:]), bytes.fromhex(GROUND[1:]), strict=True)
    return tuple((one + 2 * other) // 3 for one, other in pairs)


def main() -> None:
    headless = runpy.run_path(str(HERE.parent / "headless" / "__main__.py"))
    headless["load_pack"]()
    architectures = importlib.import_module(f"{headless['PACK']}.backend.musubi_backend.architectures")
    templates = importlib.import_module(f"{architectures.__name__}.templates")
    models = {one.name: one.title or card.title for card in architectures.cards().values() for one in templates.templates_of(card)}
    for path in sorted(HERE.glob("*.json")):
        image = draw(title(path.stem, models), json.loads(path.read_text(encoding="utf-8")))
        image.save(path.with_name(f"{path.stem}.jpg"), quality=82, optimize=True)


if __name__ == "__main__":
    main()
