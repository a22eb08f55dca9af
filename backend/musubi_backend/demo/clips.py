"""`demo_dataset`: a few short clips with captions: camera moves over the photographs that scikit-image brings along, or a chessboard.

The photographs are real images, to try everything on. A tiny untrained model cannot memorise them: it does not know where in the
image it is while all it sees is noise. The chessboard it can, because it is the same everywhere: what is trained can be seen.
"""

from __future__ import annotations

import logging
import math
from argparse import Namespace
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

from ..atomic import replacing, write_text
from ..counted import counted
from ..errors import UserError
from ..options.settings import Settings
from ..options.tables.tools import CHESSBOARD, SUBJECTS

if TYPE_CHECKING:
    import numpy as np

logger = logging.getLogger(__name__)

FPS = 16
STEP = 16


@dataclass(frozen=True)
class Shot:
    """One camera move over a photograph: a window from `start` to `end`, each (centre x, centre y, width), as shares of the image."""

    photo: str
    caption: str
    start: tuple[float, float, float]
    end: tuple[float, float, float]


SHOTS = (
    Shot("chelsea", "a close-up of the face of a tabby cat, the camera moves slowly to the right", (0.38, 0.45, 0.55), (0.62, 0.45, 0.55)),
    Shot("astronaut", "a portrait of an astronaut in an orange suit, the camera zooms in", (0.45, 0.4, 0.85), (0.44, 0.26, 0.4)),
    Shot("coffee", "a cup of coffee on a wooden table, the camera moves to the left", (0.62, 0.5, 0.6), (0.38, 0.5, 0.6)),
    Shot("rocket", "a rocket on the launch pad at night, the camera rises", (0.5, 0.7, 0.5), (0.5, 0.35, 0.5)),
)


SQUARE = 8  # pixels: as a VAE's latents divide an image
BOARD_CAPTION = "a chessboard of light and dark wood in soft light"
_WOOD = ((240, 215, 165), (120, 70, 35))


@dataclass(frozen=True)
class DemoClipSettings(Settings):
    """`demo_dataset`: how many clips, and how they are made. size: width and height; frames: of each."""

    output: str = ""
    seed: int = 0
    clips: int = 4
    size: tuple[int, int] = (64, 64)
    subject: str = SUBJECTS[0]
    frames: int = 17


def run(args: Namespace) -> None:
    """Write `--clips` clips with captions into `--output`; those already made the same way are left alone."""
    given = DemoClipSettings.read(args)
    write_clips(Path(given.output), count=given.clips, size=given.size, frames=given.frames, seed=given.seed, subject=given.subject)


def write_clips(
    folder: Path, *, count: int = 4, size: tuple[int, int] = (64, 64), frames: int = 17, seed: int = 0, subject: str = SUBJECTS[0]
) -> list[Path]:
    """`count` mp4 files (H.264, 16 frames per second) of `frames` frames in `size` (width, height), each with a .txt caption.

    Beyond the four shots, further clips are variations of them whose camera paths depend on `seed`; a chessboard's light fades from another
    strength. UserError for sizes that do not fit, when the folder cannot be written and when scikit-image is missing.
    """
    if any(side % STEP for side in size):
        raise UserError(f"--size {size[0]} {size[1]}: both sides must be multiples of {STEP}")
    if (frames - 1) % 4:
        raise UserError(f"--frames {frames} is not 4n+1; the nearest is {max(1, round((frames - 1) / 4)) * 4 + 1}")
    paths = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for number in range(count):
            shot = SHOTS[number % len(SHOTS)]
            board = subject == CHESSBOARD
            round_, name = (number, CHESSBOARD) if board else (number // len(SHOTS), shot.photo)
            name = f"{name}_{round_ + 1}" if round_ else name
            path = folder / f"{name}.mp4"
            paths.append(path)
            caption = path.with_suffix(".txt")
            wanted = f"{size[0]}x{size[1]} {frames} frames, seed {seed}"
            if _made_as(path) == wanted and caption.is_file():
                logger.info("Already there: %s", path)
                continue
            images = _board(size, frames, 1 - 0.05 * number) if board else _frames(_varied(shot, number, seed), size, frames)
            _write_video(path, images, wanted)
            write_text(caption, f"{BOARD_CAPTION if board else shot.caption}\n")
            logger.info("Written: %s (%s, %dx%d)", path, counted(frames, "frame"), *size)
    except OSError as error:
        raise UserError(f"{folder} could not be written: {error.strerror or error}") from error
    return paths


def _photo(name: str) -> np.ndarray:
    try:
        from skimage import data
    except ImportError:
        raise UserError(
            "the demo clips are made from scikit-image's photographs; install it into this environment: pip install scikit-image"
        ) from None
    image: np.ndarray = getattr(data, name)()[..., :3]
    return image


def _varied(shot: Shot, number: int, seed: int) -> Shot:
    """The shot itself for the first round and seed 0; otherwise one with a path moved and scaled a little."""
    import random

    if number < len(SHOTS) and seed == 0:
        return shot
    dice = random.Random(f"{seed}/{number}")  # noqa: S311  # camera paths, not secrets

    def moved(window: tuple[float, float, float]) -> tuple[float, float, float]:
        x, y, width = window
        return (x + dice.uniform(-0.06, 0.06), y + dice.uniform(-0.06, 0.06), width * dice.uniform(0.8, 1.0))

    return Shot(shot.photo, shot.caption, moved(shot.start), moved(shot.end))


def _frames(shot: Shot, size: tuple[int, int], count: int) -> list[np.ndarray]:
    """uint8 [H, W, 3] per frame; the window moves with a soft start and stop and stays inside the image."""
    from PIL import Image

    photo = Image.fromarray(_photo(shot.photo))
    result = []
    for number in range(count):
        share = 0.5 - 0.5 * math.cos(math.pi * number / max(1, count - 1))
        x, y, width = (a + (b - a) * share for a, b in zip(shot.start, shot.end, strict=True))
        half_w = min(width * photo.width, photo.width, photo.height * size[0] / size[1]) / 2
        half_h = half_w * size[1] / size[0]
        x = min(max(x * photo.width, half_w), photo.width - half_w)
        y = min(max(y * photo.height, half_h), photo.height - half_h)
        result.append(photo.resize(size, Image.Resampling.LANCZOS, box=(x - half_w, y - half_h, x + half_w, y + half_h)))
    return [_as_array(image) for image in result]


def _board(size: tuple[int, int], count: int, light: float) -> list[np.ndarray]:
    """uint8 [H, W, 3] per frame of a chessboard; `light` fades a little."""
    import numpy as np

    y, x = np.mgrid[: size[1], : size[0]] // SQUARE
    board = np.array(_WOOD, np.float64)[(x + y) % 2] * max(0.1, light)
    return [(board * (1 - 0.1 * number / max(1, count - 1))).astype(np.uint8) for number in range(count)]


def _as_array(image: object) -> np.ndarray:
    import numpy as np

    return np.asarray(image)


def _write_video(path: Path, frames: list[np.ndarray], made_as: str) -> None:
    import av

    height, width = frames[0].shape[:2]
    with replacing(path) as part, av.open(str(part), "w", format="mp4") as container:
        container.metadata["comment"] = made_as
        stream = container.add_stream("libx264", rate=Fraction(FPS), options={"crf": "12", "threads": "1"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for pixels in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())


def _made_as(path: Path) -> str | None:
    """How an existing clip was made, from its comment; None when there is no readable one."""
    import av

    if not path.is_file():
        return None
    try:
        with av.open(str(path)) as container:
            comment: str | None = container.metadata.get("comment")
            return comment
    except (av.FFmpegError, OSError):
        return None
