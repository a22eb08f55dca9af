"""Log lines and progress bars in musubi-tuner's wording, so that one parser follows both engines.

Log: stderr, `LEVEL:module:message`. Bars: tqdm on stderr. Streams keep the encoding that the machine gives them.
"""

from __future__ import annotations

import errno
import io
import logging
import os
import stat
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tqdm import tqdm


def setup_streams() -> None:
    """No text can stop a program: characters that stdout and stderr cannot encode (Windows writes files in cp1252, a bare Linux in
    ascii) become `\\u5b66`. Called first by every entry point; the encoding stays the reader's."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper):  # None under pythonw, something else where another program has replaced it
            stream.reconfigure(errors="backslashreplace")
            if _is_a_file(stream):
                raw = _Log(stream.fileno(), "wb", closefd=False)
                stream.flush()
                kept = io.TextIOWrapper(io.BufferedWriter(raw), stream.encoding, stream.errors, line_buffering=True)
                setattr(sys, name, kept)


class _Log(io.FileIO):
    """A file that takes what there is room for: a full disk at the log ends no work."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data) or 0
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            return len(data)


def _is_a_file(stream: io.TextIOWrapper) -> bool:
    try:
        return stat.S_ISREG(os.fstat(stream.fileno()).st_mode)
    except (OSError, ValueError):
        return False


def setup_logging() -> None:
    """Send INFO and above to stderr as `LEVEL:logger:message`. Called once by `__main__`."""
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(levelname)s:%(name)s:%(message)s", force=True)


def progress_bar(total: int | None, description: str = "", **kwargs: Any) -> tqdm[Any]:
    """A tqdm bar on stderr. musubi-tuner's descriptions are "steps" for training and none for sampling and caching."""
    from tqdm import tqdm

    return tqdm(total=total, desc=description or None, dynamic_ncols=False, smoothing=0.1, **kwargs)
