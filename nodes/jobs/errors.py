"""The one line of a log that says what went wrong, for a node's error message."""

from __future__ import annotations

import re
from pathlib import Path

_TAIL_BYTES = 256 * 1024
_LAUNCHER = ("subprocess.CalledProcessError", "torch.distributed.elastic")
_EXCEPTION = re.compile(r"^[A-Za-z_][\w.]*(?::\s|$)")
_USER_ERROR = "ERROR: "
_LOG_LINE = re.compile(r"^(DEBUG|INFO|WARNING|ERROR|CRITICAL):|^[^|]*\d%\|")  # or a bar
_BEHIND_A_BAR = re.compile(r"(?<=\])(?=Traceback \(most recent call last\):|ERROR: )")  # that nobody closed: it has no line end


def read_tail(log: Path) -> str:
    """The end of a log as text, "" where it cannot be read; carriage returns become line ends."""
    try:
        with log.open("rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - _TAIL_BYTES))
            return file.read().decode("utf-8", errors="replace").replace("\r\n", "\n").replace("\r", "\n")
    except OSError:
        return ""


def last_error(text: str) -> str:
    """The last `ERROR: …` block of our backend, else the last exception of a Python traceback, else the last words."""
    lines = _BEHIND_A_BAR.sub("\n", text).split("\n")
    found: list[str] = []
    index = 0
    while index < len(lines):
        line = lines[index]
        if line.startswith(_USER_ERROR):
            found = _block(lines, index)
            found[0] = found[0].removeprefix(_USER_ERROR)
        elif line.startswith("Traceback (most recent call last):"):
            index, exception = _traceback(lines, index)
            if exception and not exception[0].startswith(_LAUNCHER):
                found = exception
            continue
        index += 1
    if not found:
        found = [line for line in lines if line.strip()][-3:] or ["it printed nothing"]
    return _with_hint("\n".join(found).strip())


def describe_exit(returncode: int) -> str:
    """What an exit code says where the log says nothing."""
    if returncode in (-9, 137):
        return "it was killed by the system, most often because memory ran out"
    if returncode in (-11, 139, 3221225477):
        return "it crashed (segmentation fault), most often a driver or library that does not fit"
    return f"it ended with code {returncode}"


def _block(lines: list[str], start: int) -> list[str]:
    """The lines of one message: until a log line, a traceback or an empty line."""
    end = start + 1
    while end < len(lines) and end - start < 12 and lines[end].strip() and not _LOG_LINE.match(lines[end]):
        if lines[end].startswith("Traceback"):
            break
        end += 1
    return lines[start:end]


def _traceback(lines: list[str], start: int) -> tuple[int, list[str]]:
    """(index after the traceback, its exception lines)."""
    index = start + 1
    while index < len(lines) and (lines[index].startswith(" ") or not lines[index]):
        index += 1
    if index >= len(lines) or not _EXCEPTION.match(lines[index]):
        return index, []
    block = _block(lines, index)
    return index + len(block), block


def _with_hint(message: str) -> str:
    if "out of memory" in message.lower() and "CUDA" in message:
        return message + (
            "\nThe GPU's memory is full. Lower the resolution or the number of frames, turn on gradient checkpointing, "
            "or close other programs that use the GPU."
        )
    if "No space left on device" in message:
        return message + "\nThe disk is full. Free some space and run again."
    return message
