"""Log lines and progress bars in musubi-tuner's wording, so that one parser follows both engines.

Log: stderr, `LEVEL:module:message`. Bars: tqdm on stderr. Streams keep the encoding that the machine gives them.
"""

from __future__ import annotations

import io
import logging
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tqdm import tqdm


def setup_streams() -> None:
    """No text can stop a program: characters that stdout and stderr cannot encode (Windows writes files in cp1252, a bare Linux in
    ascii) become `\\u5b66`. Called first by every entry point; the encoding stays the reader's."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # None under pythonw, something else where another program has replaced it
            stream.reconfigure(errors="backslashreplace")


def setup_logging() -> None:
    """Send INFO and above to stderr as `LEVEL:logger:message`. Called once by `__main__`."""
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(levelname)s:%(name)s:%(message)s", force=True)


def progress_bar(total: int | None, description: str = "", **kwargs: Any) -> tqdm[Any]:
    """A tqdm bar on stderr. musubi-tuner's descriptions are "steps" for training and none for sampling and caching."""
    from tqdm import tqdm

    return tqdm(total=total, desc=description or None, dynamic_ncols=False, smoothing=0.1, **kwargs)
