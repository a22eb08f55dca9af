"""Draws the pictures that ComfyUI shows in its list of templates: `python workflows/thumbnails.py`, with the environment's python.

ComfyUI looks for `<name>.jpg` next to `<name>.json`. A picture is the workflow from far away, under its title.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

HERE = Path(__file__).resolve().parent
SIZE, MARGIN, HEADER = (480, 300), 28, 96
GROUND, NODE, LINE, INK = "#15181c", "#3b4048", "#8fa3b0", "#f2f4f5"
SPELLED = {"lora": "LoRA", "wan": "Wan2.1", "wan22": "Wan2.2", "i2v": "image to video", "hunyuan": "Hunyuan", "framepack": "FramePack"}
SPELLED |= {"app": "(app)", "ema": "EMA", "post": "post-", "hoc": "hoc"}


def title(name: str) -> str:
    """A template's file name in words."""
    words = " ".join(SPELLED.get(word, word) for word in name.replace(".", "_").split("_"))
    return (
        (words[0].upper() + words[1:])
        .replace("start here", "(start here)")
        .replace("post- hoc", "post-hoc")
        .replace("Hunyuan video", "HunyuanVideo")
    )


def draw(name: str, workflow: dict[str, Any]) -> Image.Image:
    """The picture of a workflow; of one with a subgraph, what is folded into it."""
    picture = Image.new("RGB", SIZE, GROUND)
    pen = ImageDraw.Draw(picture)
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
    while pen.textlength(title(name), font=ImageFont.load_default(size)) > SIZE[0] - 2 * MARGIN:
        size -= 1
    pen.text((SIZE[0] / 2, HEADER / 2), title(name), fill=INK, font=ImageFont.load_default(size), anchor="mm")
    return picture


def _mixed(colour: str) -> tuple[int, ...]:
    """A third of a colour over the ground."""
    pairs = zip(bytes.fromhex(colour[1:]), bytes.fromhex(GROUND[1:]), strict=True)
    return tuple((one + 2 * other) // 3 for one, other in pairs)


def main() -> None:
    for path in sorted(HERE.glob("*.json")):
        picture = draw(path.stem, json.loads(path.read_text(encoding="utf-8")))
        picture.save(path.with_name(f"{path.stem}.jpg"), quality=82, optimize=True)


if __name__ == "__main__":
    main()
