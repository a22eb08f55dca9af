"""`--debug_mode`: look at what would be encoded, after resizing and cutting, instead of encoding it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..counted import counted
from ..dataset.ahead import decoded
from ..dataset.decoding import DecodedEntry
from ..dataset.problems import Problem
from ..errors import UserError

if TYPE_CHECKING:
    import numpy as np

    from ..architectures.card import Card
    from ..dataset.discovery import Discovery
    from .settings import PreviewSettings

NEXT_DATASET, QUIT = "d", "q"
RAMP = " .:-=+*#%@"
BACKGROUNDS = {name: 40 + number for number, name in enumerate(("BLACK", "RED", "GREEN", "YELLOW", "BLUE", "MAGENTA", "CYAN", "WHITE"))}


def show(discoveries: Sequence[Discovery], card: Card, settings: PreviewSettings, at_a_time: int) -> None:
    """Show or write every entry of every dataset, as `--debug_mode` says; "d" continues to the next dataset, "q" ends.
    at_a_time: how many media are decoded side by side."""
    if settings.debug_mode != "video":
        print("d: next dataset, q: quit")
    for number, discovery in enumerate(discoveries):
        print(f"Dataset [{number}]")
        shown = 0
        for _, entries in decoded(discovery.items, card, at_a_time):
            if isinstance(entries, Problem):
                print(str(entries))
                continue
            key = ""
            for entry in entries:
                key = _show_one(entry, card, settings)
                shown += 1
                if key in (QUIT, NEXT_DATASET) or (settings.debug_mode == "console" and shown == settings.console_num_images):
                    key = key or NEXT_DATASET
                    break
            if key == QUIT:
                return
            if key == NEXT_DATASET:
                break


def _show_one(entry: DecodedEntry, card: Card, settings: PreviewSettings) -> str:
    """Returns the key that was pressed, "" for any other and where none is asked for."""
    path = entry.entry.latent_paths(card)[0]
    frames, height, width = entry.pixels.shape[:3]
    print(f"{path.name}: {width}x{height}, {counted(frames, 'frame')}, caption: {entry.entry.item.caption}")
    if settings.debug_mode == "video":
        _write(entry, card)
        return ""
    images = entry.pixels[[0]] if frames == 1 else entry.pixels[[0, -1]]
    if settings.debug_mode == "image":
        return _windows(images)
    for image in images:
        print(characters(image, settings.console_width, settings.console_back))
    if settings.console_num_images is not None:
        return ""
    try:
        return input("Press q to quit, d to next dataset, other key to next: ").strip().lower()[:1]
    except EOFError:
        return QUIT


def characters(image: np.ndarray, width: int, background: str | None) -> str:
    """uint8 [H, W, 3] as lines of coloured characters, brighter ones heavier. UserError for an unknown background colour."""
    from PIL import Image

    if background and background.upper() not in BACKGROUNDS:
        raise UserError(f"--console_back {background} is not a colour; use one of {', '.join(BACKGROUNDS)}")
    ground = f"\x1b[{BACKGROUNDS[background.upper()]}m" if background else ""
    height = max(1, round(width * image.shape[0] / image.shape[1] / 2))  # characters are twice as high as wide
    small = Image.fromarray(image).resize((width, height))
    rows = []
    for y in range(height):
        cells = []
        for x in range(width):
            red, green, blue = small.getpixel((x, y))  # type: ignore[misc]  # an RGB image gives three numbers
            light = (299 * red + 587 * green + 114 * blue) // 1000
            cells.append(f"\x1b[38;2;{red};{green};{blue}m{RAMP[light * len(RAMP) // 256]}")
        rows.append(f"{ground}{''.join(cells)}\x1b[0m")
    return "\n".join(rows)


def _windows(images: np.ndarray) -> str:
    import cv2

    key = 0
    try:
        for image in images:
            cv2.imshow("image", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
            key = cv2.waitKey(0)
            cv2.destroyAllWindows()
    except cv2.error as error:
        raise UserError("--debug_mode image needs a desktop, and OpenCV with windows; use --debug_mode video or console") from error
    return chr(key) if key in (ord(QUIT), ord(NEXT_DATASET)) else ""


def _write(entry: DecodedEntry, card: Card) -> None:
    from PIL import Image

    from ..atomic import replacing
    from ..inference.video_file import write_mp4

    path = entry.entry.latent_paths(card)[0]
    path.parent.mkdir(parents=True, exist_ok=True)
    if entry.entry.frames is None:
        target = path.with_suffix(".jpg")
        with replacing(target) as part:
            Image.fromarray(entry.pixels[0]).save(part, format="JPEG")
        print(f"Saved image: {target}")
    else:
        target = path.with_suffix(".mp4")
        write_mp4(target, entry.pixels, card.fps)
        print(f"Saved video: {target}")
