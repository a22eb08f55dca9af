"""Text files as people's editors write them: UTF-8 with or without a byte order mark, UTF-16 and UTF-32 with one."""

from __future__ import annotations

import codecs
from pathlib import Path

from .ordinary import check_ordinary

MOST_MEGABYTES = 256
"""Of a text that is read whole: a model or a video under the name of a text would take the memory of the machine."""

_MARKS = (  # the longer ones first: UTF-32's little-endian mark begins with UTF-16's
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def read_text(path: Path) -> str:
    """The text of a file without its byte order mark, line ends as \\n. OSError; ValueError says which encoding was expected and where
    it breaks, or that the file is too large for a text."""
    check_ordinary(path)
    size = path.stat().st_size
    if size > MOST_MEGABYTES * 1_000_000:
        raise ValueError(f"too long for a text: {size / 1e6:.0f} MB, and {MOST_MEGABYTES} MB are read at most")
    content = path.read_bytes()
    encoding = next((name for mark, name in _MARKS if content.startswith(mark)), "utf-8-sig")
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        name = "UTF-8" if encoding == "utf-8-sig" else encoding.upper()
        raise ValueError(f"not {name} text (byte {error.start}); save it as UTF-8") from None
    return text.replace("\r\n", "\n").replace("\r", "\n").removeprefix("\ufeff")
