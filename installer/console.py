"""Plain language on the terminal, everything else in a log file; and how other programs are run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

_SHOWN = ("Collecting ", "Downloading ", "Installing ", "Building ", "Preparing ", "Resolved ", "Prepared ", "Installed ", "Successfully ")
_TAIL_LINES = 12


_HANGS_SECONDS = 600


class InstallError(Exception):
    """Something the user has to settle. The message says what failed and what to do."""


class CommandFailed(InstallError):
    """A program that we ran ended with an error; `tail` holds the last lines it wrote."""

    def __init__(self, argv: Sequence[str], code: int, tail: str, log: Path) -> None:
        super().__init__(f"{Path(argv[0]).name} {' '.join(argv[1:4])} … failed with code {code}. Its last lines:\n{tail}\nAll of it: {log}")
        self.tail = tail


class Console:
    """Where messages go: the terminal and `<home>/install.log`."""

    def __init__(self, home: Path) -> None:
        self.log_path = home / "install.log"
        self._live = sys.stdout.isatty()
        self._dirty = False

    def say(self, text: str = "") -> None:
        if self._dirty:
            sys.stdout.write("\r\033[K")
            self._dirty = False
        print(text, flush=True)
        self._log(text)

    def detail(self, text: str) -> None:
        """A line that matters while it lasts: overwritten on a terminal; elsewhere only large downloads are reported."""
        if self._live:
            sys.stdout.write(f"\r\033[K    {text[:100]}")
            sys.stdout.flush()
            self._dirty = True
        elif text.startswith("Downloading ") and text.endswith(("MB)", "GB)")):
            print(f"    {text}", flush=True)

    def _log(self, text: str) -> None:
        if self.log_path.parent.is_dir():
            with self.log_path.open("a", encoding="utf-8") as log:
                log.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {text}\n")

    def run(self, argv: Sequence[str], environment: Mapping[str, str] | None = None, folder: Path | None = None) -> None:
        """Run a program, its output in the log and what is telling on the terminal. CommandFailed if it ends with an error."""
        tail: deque[str] = deque(maxlen=_TAIL_LINES)
        self._log("> " + " ".join(argv))
        process = subprocess.Popen(
            list(argv),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env=clean_environment(environment),
            cwd=folder,
            encoding="utf-8",
            errors="replace",
        )
        try:
            for line in _lines(process):
                tail.append(line)
                self._log("  " + line)
                if line.startswith(_SHOWN):
                    self.detail(line.split(" (from ")[0].split(" --> ")[0])
            code = process.wait()
        except BaseException:
            process.terminate()
            process.wait()
            raise
        if code:
            raise CommandFailed(argv, code, "\n".join(f"    {line}" for line in tail), self.log_path)


def _lines(process: subprocess.Popen[str]) -> Iterator[str]:
    for line in process.stdout or ():
        text = line.strip()
        if text:
            yield text


def clean_environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process's environment without what would bind a child python to another installation (ComfyUI's, a virtual environment's).

    pip's and uv's variables are left out as well: sources.py says which of them hold for us.
    """
    dropped = {"PYTHONHOME", "PYTHONPATH", "PYTHONSTARTUP", "VIRTUAL_ENV", "__PYVENV_LAUNCHER__"}
    kept = {
        name: value for name, value in os.environ.items() if name.upper() not in dropped and not name.upper().startswith(("PIP_", "UV_"))
    }
    return {**kept, "PYTHONUTF8": "1", "PYTHONNOUSERSITE": "1", **(extra or {})}


def answer_of(argv: Sequence[str]) -> Any:
    """The JSON in the last line that a program of ours prints (packages may print as well when they are imported); None as `output_of`."""
    text = output_of(argv)
    try:
        return json.loads((text or "").rstrip().rpartition("\n")[2])
    except ValueError:
        return None


def output_of(argv: Sequence[str], environment: Mapping[str, str] | None = None) -> str | None:
    """What a short program prints, or None if it is missing, fails or hangs: a slow machine must not pass for one without a GPU, or
    a working environment for a broken one, which would be made anew."""
    try:
        done = subprocess.run(
            list(argv),
            capture_output=True,
            timeout=_HANGS_SECONDS,
            env=clean_environment(environment),
            stdin=subprocess.DEVNULL,
            encoding="utf-8",
            errors="replace",
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
