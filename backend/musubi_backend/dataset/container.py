"""Was a video file cut off? Answered from the sizes its container declares, because FFmpeg quietly plays what is left.

MP4/MOV: ISO/IEC 14496-12, top-level boxes. Matroska/WebM: RFC 8794 (EBML) and RFC 9559, the size of the Segment.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

_MATROSKA = b"\x1a\x45\xdf\xa3"
_MP4_CLIP = (b"moov", b"mdat", b"moof")
"""Boxes that hold the clip. Behind them cameras and downloads leave anything."""
_MP4_FIRST_BOXES = (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot", b"styp")


def missing_bytes(path: Path) -> int:
    """How many bytes the container declares beyond the end of the file; 0 when it is whole or of another kind."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        if start[:4] == _MATROSKA:
            declared = _matroska_end(file)
        elif start[4:8] in _MP4_FIRST_BOXES:
            declared = max(_mp4_box_ends(file, size), default=size)
        else:
            return 0
    return max(0, declared - size)


def _mp4_box_ends(file: BinaryIO, size: int) -> Iterator[int]:
    position = 0
    while position + 8 <= size:
        file.seek(position)
        length, kind = struct.unpack(">I4s", file.read(8))
        if length == 1:  # a 64-bit length follows
            length = int.from_bytes(file.read(8), "big")
        if length < 8 or not kind.isascii():  # 0 means "to the end of the file"; anything else here is padding
            return
        position += length
        if kind in _MP4_CLIP:
            yield position


def _matroska_end(file: BinaryIO) -> int:
    """End of the Segment that follows the EBML header; 0 when its size is unknown (live recordings)."""
    file.seek(4)
    header = _vint(file)
    if header is None:
        return 0
    file.seek(header, 1)
    file.read(4)  # the Segment's id
    segment = _vint(file)
    return 0 if segment is None else file.tell() + segment


def _vint(file: BinaryIO) -> int | None:
    """A variable-length number: as many bytes as leading zero bits plus one; None for "unknown" (all ones)."""
    first = file.read(1)
    if not first or not first[0]:
        return None
    length = 9 - first[0].bit_length()
    value = int.from_bytes(bytes([first[0] & (0xFF >> length)]) + file.read(length - 1), "big")
    return None if value == (1 << 7 * length) - 1 else value
