"""Pictures in, video and image files out, in the form musubi-tuner writes them: mp4 by libx264, yuv420p, 4 Mbit/s; PNG.

What a file was made with (prompt, seed, …) goes into the file: as mp4 tags and as PNG text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .. import atomic
from ..errors import UserError

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

BIT_RATE = 4_000_000


def to_pictures(video: Tensor) -> np.ndarray:
    """float video [3, F, H, W] in 0..1 -> uint8 pictures [F, H, W, 3]; values outside are clamped, fractions cut off as
    musubi-tuner does."""
    import torch

    pictures: np.ndarray = (video.float().clamp(0, 1) * 255).to(torch.uint8).permute(1, 2, 3, 0).contiguous().cpu().numpy()
    return pictures


def write_mp4(path: str | Path, pictures: np.ndarray | Sequence[np.ndarray], fps: int, metadata: Mapping[str, str] | None = None) -> Path:
    """Write uint8 RGB pictures [F, H, W, 3] as one H.264 mp4. Odd sides get one repeated row or column: yuv420p needs even
    ones. The folder is created; the file appears only when complete."""
    import av

    target = _target(path)
    if len(pictures) == 0:
        raise UserError(f"{target}: a video needs at least one picture")
    height, width = (side + side % 2 for side in pictures[0].shape[:2])
    with atomic.replacing(target) as part, av.open(str(part), "w", format="mp4", options={"movflags": "use_metadata_tags"}) as container:
        container.metadata.update(metadata or {})
        stream = container.add_stream("libx264", rate=fps)
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = width, height, "yuv420p", BIT_RATE
        for picture in pictures:
            frame = av.VideoFrame.from_ndarray(_padded(picture, height, width), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return target


def write_pngs(
    folder: str | Path, name: str, pictures: np.ndarray | Sequence[np.ndarray], metadata: Mapping[str, str] | None = None
) -> list[Path]:
    """Write pictures as `{folder}/{name}/{name}_000.png` and on; a single one as `{folder}/{name}_000.png`."""
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    parent = Path(folder) / name if len(pictures) > 1 else Path(folder)
    info = PngInfo()
    for key, value in (metadata or {}).items():
        info.add_itxt(key, value)
    written = []
    for index, picture in enumerate(pictures):
        target = _target(parent / f"{name}_{index:03d}.png")
        with atomic.replacing(target) as part:
            Image.fromarray(picture).save(part, format="PNG", pnginfo=info)
        written.append(target)
    return written


def _padded(picture: np.ndarray, height: int, width: int) -> np.ndarray:
    import numpy as np

    missing = ((0, height - picture.shape[0]), (0, width - picture.shape[1]), (0, 0))
    return np.ascontiguousarray(np.pad(picture, missing, mode="edge"))


def _target(path: str | Path) -> Path:
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    return target
