"""Log lines and progress bars on a terminal, in musubi-tuner's wording; bars are reported to the job as events too.

Log: stderr, `LEVEL:module:message`. Bars: tqdm on stderr. Streams keep the encoding that the machine gives them.
"""

from __future__ import annotations

import errno
import io
import logging
import os
import stat
import sys
import time
from typing import Any

from . import durations, events, job


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


class _Told(logging.Handler):
    """Warnings of our own are reported to the job too: nobody reads the log of a node that went well."""

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno >= logging.WARNING and record.name.startswith(f"{__package__}."):
            job.emit(events.Warned(record.getMessage()))


def setup_logging() -> None:
    """Send INFO and above to stderr as `LEVEL:logger:message`, and what people should know to the job. Called once by `__main__`."""
    handlers = [logging.StreamHandler(sys.stderr), _Told()]
    logging.basicConfig(level=logging.INFO, handlers=handlers, format="%(levelname)s:%(name)s:%(message)s", force=True)


class Bar:
    """A tqdm bar on stderr and the `Progress` events of the job. musubi-tuner's titles are "steps" for training and none for sampling and
    caching. total: None where nobody knows it; done: what was so before."""

    def __init__(self, total: int | None, title: str = "", *, done: int = 0, unit: str = "it") -> None:
        from tqdm import tqdm

        self.total, self.title, self.done = total, title, done
        self._bar = tqdm(total=total, desc=title or None, initial=done, unit=unit, dynamic_ncols=False, smoothing=0.1)
        self._told = 0, 0.0  # how much was done, and when
        self.tell()

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def update(self, count: int = 1) -> None:
        """So many more are done."""
        self.done += count
        self._bar.update(count)
        if self.done == self.total or time.monotonic() - self._told[1] >= durations.BETWEEN_BARS:
            self.tell()

    def close(self) -> None:
        self._bar.close()
        if self._told[0] != self.done:
            self.tell()

    def tell(self) -> None:
        """Say where it is, also where nothing is new."""
        self._told = self.done, time.monotonic()
        job.emit(events.Progress(self.done, self.total, self.title))
