"""Errors meant for people: what is wrong, where, and what to do about it."""

from __future__ import annotations


class UserError(Exception):
    """A problem the user can fix. `__main__` prints it as one `ERROR: …` block without a traceback and exits with 1.

    Write the message as: what is wrong (naming the file, key or flag), then what to do.
    """


class StopRequested(Exception):
    """Raised inside a verb when the job was asked to stop and everything worth keeping has been written.

    `__main__` prints its message and exits with `EXIT_STOPPED`. summary: what a node shows instead of it.
    """

    def __init__(self, message: str, summary: str = "") -> None:
        super().__init__(message)
        self.summary = summary or message


EXIT_USER_ERROR = 1
EXIT_STOPPED = 3
