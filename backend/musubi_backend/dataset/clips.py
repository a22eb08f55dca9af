"""The frames of clips: video files, animated images and folders of images; upright, with square pixels, in standard range, opaque."""

from __future__ import annotations

import logging
import struct
import threading
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..counted import counted
from ..threads import processors
from . import tone
from .animations import AnimationFrame, frames_of_animation, rate_of_animation
from .buckets import Size
from .container import missing_bytes
from .images import image_notes, on_white, open_image, read_image, upright_size
from .media import images_in, is_animation, natural_order
from .problems import UnusableMedium

if TYPE_CHECKING:
    import numpy as np
    from av import VideoCodecContext, VideoFrame
    from av.container import InputContainer
    from av.video.stream import VideoStream

logger = logging.getLogger(__name__)

_ATTACHED_IMAGE = 0x400  # AV_DISPOSITION_ATTACHED_PIC
_WITH_ALPHA = {"vp8": "libvpx", "vp9": "libvpx-vp9"}
_SQUARE_ENOUGH = 0.01  # encoders write 640:639 where a size was rounded


@dataclass(frozen=True)
class ImageFrame:
    """A frame that is a file of its own."""

    path: Path
    time: float | None = None

    def pixels(self) -> np.ndarray:
        """uint8 [H, W, 3]. UnusableMedium."""
        return read_image(self.path)

    @property
    def size(self) -> Size:
        """(width, height) as shown. UnusableMedium."""
        with open_image(self.path) as image:
            return upright_size(image)

    def notes(self) -> tuple[str, ...]:
        with open_image(self.path) as image:
            return image_notes(self.path, image)


@dataclass(frozen=True)
class VideoFileFrame:
    """A decoded frame of a video file. time: in seconds, None where the file tells none; aspect: width by height of its pixels."""

    frame: VideoFrame
    time: float | None
    aspect: Fraction

    def pixels(self) -> np.ndarray:
        """uint8 [H, W, 3]."""
        import numpy as np

        width, height = self._square()
        stretched = {} if (width, height) == (self.frame.width, self.frame.height) else {"width": width, "height": height}
        if tone.notes_of(*self._coding):
            primaries, transfer = self._coding
            pixels = tone.to_standard(self._as("rgb48le", stretched), transfer, primaries)
        elif self._has_alpha:
            pixels = on_white(self._as("rgba", stretched))
        else:
            pixels = self._as("rgb24", stretched)
        swap, flip_x, flip_y = self._turn or (False, False, False)
        if swap:
            pixels = pixels.transpose(1, 0, 2)
        return np.ascontiguousarray(pixels[:: -1 if flip_y else 1, :: -1 if flip_x else 1])

    @property
    def size(self) -> Size:
        """(width, height) as shown."""
        width, height = self._square()
        return (height, width) if self._turn and self._turn[0] else (width, height)

    def notes(self) -> tuple[str, ...]:
        """What a person should know about how this frame, and so the clip, is read."""
        notes = [*tone.notes_of(*self._coding)]
        if self._square() != (self.frame.width, self.frame.height):
            notes.append("pixels are not square: stretched as players show it")
        if self.frame.interlaced_frame:
            notes.append("interlaced: trained with its comb lines; deinterlace it first")
        if self._has_alpha and self._as("rgba", {})[..., 3].min() < 255:
            notes.append("has transparency: what is transparent is laid on white")
        if self._turn is None:
            notes.append("turned by an angle that is no multiple of 90 degrees: trained as it is stored")
        return tuple(notes)

    def _as(self, pixel_format: str, size: dict[str, int]) -> np.ndarray:
        converted = self.frame.reformat(format=pixel_format, **size) if size else self.frame
        return converted.to_ndarray(format=pixel_format)

    def _square(self) -> Size:
        """The size with square pixels, before turning: the side that is too short is stretched."""
        width, height, aspect = self.frame.width, self.frame.height, self.aspect
        if aspect <= 0 or abs(aspect - 1) < _SQUARE_ENOUGH or not Fraction(1, 20) < aspect < 20:
            return width, height
        return (max(1, round(width * aspect)), height) if aspect > 1 else (width, max(1, round(height / aspect)))

    @property
    def _coding(self) -> tuple[int, int]:
        """(primaries, transfer characteristics); ComfyUI's PyAV may be too old to know them."""
        return int(getattr(self.frame, "color_primaries", 2)), int(getattr(self.frame, "color_trc", 2))

    @property
    def _has_alpha(self) -> bool:
        return self.frame.format.name == "pal8" or any(component.is_alpha for component in self.frame.format.components)

    @property
    def _turn(self) -> tuple[bool, bool, bool] | None:
        """(swap rows and columns, mirror left and right, mirror top and bottom) by the file's display matrix (ISO/IEC 14496-12, 8.3.2:
        x' = ax + cy, y' = bx + dy); None for another angle."""
        side_data: Iterable[Any] = self.frame.side_data
        for data in side_data:
            if data.type.name == "DISPLAYMATRIX":
                a, b, _, c, d = struct.unpack("=5i", bytes(data)[:20])
                if a == d == 0:
                    return True, c < 0, b < 0
                return (False, a < 0, d < 0) if b == c == 0 else None
        return False, False, False


ClipFrame = ImageFrame | VideoFileFrame | AnimationFrame

_decoder = threading.local()


def share_processors(decoders: int) -> None:
    """In a thread that decodes next to `decoders` - 1 others: FFmpeg's own threads get their share, instead of one per processor each."""
    _decoder.threads = max(1, processors() // max(1, decoders))


def frames_of(path: Path) -> Generator[ClipFrame, None, None]:
    """The frames of a clip in order, a video file's as decoded; their pixels are made when asked for. What cannot be decoded before the
    first frame is passed over (a stream cut between keyframes); after it, the clip ends there. UnusableMedium."""
    if path.is_dir():
        yield from map(ImageFrame, frames_of_folder(path))
        return
    if is_animation(path):
        yield from frames_of_animation(path)
        return
    with open_video(path) as (container, stream):
        decoder = _decoder_of(stream)
        decoder.thread_type, decoder.thread_count = "AUTO", getattr(_decoder, "threads", 0)
        aspect = Fraction(stream.sample_aspect_ratio or 1)
        has_times = container.format.name != "avi"  # one rate for all; FFmpeg's guesses are wrong where frames are reordered
        for frame in _decoded(container, stream, decoder, path):
            yield VideoFileFrame(frame, frame.time if has_times else None, aspect)


def _decoder_of(stream: VideoStream) -> VideoCodecContext:
    """The stream's decoder; where the file says that VP8 or VP9 has transparency, the one that reads it."""
    import av

    tags = {key.lower(): value for key, value in stream.metadata.items()}
    name = _WITH_ALPHA.get(stream.codec_context.name) if tags.get("alpha_mode") == "1" else None
    if name is None or name not in av.codecs_available:
        return stream.codec_context
    decoder: VideoCodecContext = av.CodecContext.create(name, "r")  # type: ignore[assignment]  # as the codec is one of video
    decoder.extradata = stream.codec_context.extradata
    return decoder


def _decoded(container: InputContainer, stream: VideoStream, decoder: VideoCodecContext, path: Path) -> Iterator[VideoFrame]:
    import av

    count = 0
    damage: av.InvalidDataError | None = None
    for packet in container.demux(stream):
        try:
            frames = decoder.decode(packet)
        except av.InvalidDataError as error:
            damage = error
            if count:
                logger.warning(f"{path}: damaged behind frame {count}; what follows is left out")
                return
            continue
        for frame in frames:
            count += 1
            yield frame
    if damage is not None and not count:
        raise damage


def frames_of_folder(folder: Path) -> list[Path]:
    """The images of a folder that stands for a clip, 2 before 10. UnusableMedium when there are none."""
    images = sorted(images_in(folder), key=natural_order)
    if not images:
        raise UnusableMedium(folder, "a folder without images is no clip")
    return images


def frame_rate(path: Path) -> Fraction | None:
    """Frames per second as a video file says; None where it does not, and for folders. UnusableMedium."""
    if path.is_dir():
        return None
    if is_animation(path):
        return rate_of_animation(path)
    with open_video(path) as (_, stream):
        return stream.average_rate or None


@contextmanager
def open_video(path: Path) -> Iterator[tuple[InputContainer, VideoStream]]:
    """The opened file and its first stream of moving images. UnusableMedium for what FFmpeg cannot read, here or in the block, and for
    cut-off files."""
    import av

    try:
        if path.stat().st_size == 0:
            raise UnusableMedium(path, "the file is empty (0 bytes)")
        missing = missing_bytes(path)
        if missing:
            raise UnusableMedium(
                path, f"the file is cut off: {counted(missing, 'byte is', 'bytes are')} missing at the end; copy or download it again"
            )
        with av.open(str(path), metadata_errors="replace") as container:
            moving = [stream for stream in container.streams.video if not _is_cover(stream)]
            if not moving:
                cover = " but a cover image" if container.streams.video else ""
                raise UnusableMedium(path, f"there is no video in this file{cover}")
            yield container, moving[0]
    except av.EOFError as error:
        raise UnusableMedium(path, "the file ends before the first frame") from error
    except av.FFmpegError as error:
        raise UnusableMedium(path, f"the video cannot be read: {error.strerror}") from error
    except OSError as error:
        raise UnusableMedium(path, f"cannot be read: {error.strerror or error}") from error
    except (
        ValueError,
        OverflowError,
        ArithmeticError,
        MemoryError,
        LookupError,
    ) as error:  # PyAV's, for absurd numbers
        raise UnusableMedium(path, f"the video cannot be read: {error or type(error).__name__}") from error


def _is_cover(stream: Any) -> bool:
    return bool(int(stream.disposition) & _ATTACHED_IMAGE)
