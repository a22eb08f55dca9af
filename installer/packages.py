"""Installs packages into the backend's environment with uv or pip, from the same sources that the user's pip knows."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from . import machine
from .console import Console, output_of
from .environment import Contents, inspect, python_of

_PIP_TO_UV = {
    "index-url": "UV_DEFAULT_INDEX",
    "extra-index-url": "UV_INDEX",
    "find-links": "UV_FIND_LINKS",
    "cert": "SSL_CERT_FILE",
}


class Packages:
    """The package installer of one environment."""

    def __init__(self, environment: Path, home: Path, console: Console) -> None:
        self.environment = environment
        self.console = console
        self._python = str(python_of(environment))
        self._uv = machine.find_uv(home)

    @property
    def tool(self) -> str:
        return "uv" if self._uv else "pip"

    def install(
        self, requirements: list[str], *, constraints: Path | None = None, indexes: tuple[str, ...] = (), alone: bool = False
    ) -> None:
        """Install `requirements`. `indexes` are asked too, beside the configured ones; `alone` leaves dependencies out."""
        options = [*(["--constraint", str(constraints)] if constraints else []), *(["--no-deps"] if alone else [])]
        if self._uv:
            command = [*self._uv, "pip", "install", "--python", self._python]
            for index in indexes:
                command += ["--index", index, "--index-strategy", "unsafe-best-match"]
            self.console.run([*command, *options, *requirements], uv_settings())
            return
        if output_of([self._python, "-m", "pip", "--version"]) is None:
            self.console.run([self._python, "-m", "ensurepip"])
        command = [self._python, "-m", "pip", "install", "--progress-bar", "off"]
        for index in indexes:
            command += ["--extra-index-url", index, "--retries", "1"]
        self.console.run([*command, *options, *requirements])

    def discard_incomplete(self) -> None:
        """Unregister packages whose files are not all there, so that they are installed again."""
        found: Contents | None = inspect(self.environment, files=True)
        for name, record in sorted((found.incomplete if found else {}).items()):
            self.console.say(f"  {name} is incomplete: installing it again.")
            shutil.rmtree(record, ignore_errors=True)


def uv_settings() -> dict[str, str]:
    """uv reads none of pip's settings: hand it those that say where packages come from, unless it has its own.

    Where several indexes are configured, pip takes the best version of all of them; uv is told to do the same.
    """
    text = output_of([sys.executable, "-m", "pip", "config", "list"]) or ""
    found: dict[str, str] = {}
    for line in text.splitlines():
        name, separator, value = line.partition("=")
        if separator:
            found[name.rpartition(".")[2]] = value.strip().strip("'\"")
    for option in _PIP_TO_UV:
        found[option] = os.environ.get("PIP_" + option.upper().replace("-", "_")) or found.get(option, "")
    settings = {variable: found[option] for option, variable in _PIP_TO_UV.items() if found.get(option) and variable not in os.environ}
    if "UV_FIND_LINKS" in settings:
        settings["UV_FIND_LINKS"] = ",".join(settings["UV_FIND_LINKS"].split())
    if "UV_INDEX" in settings:
        settings.setdefault("UV_INDEX_STRATEGY", "unsafe-best-match")
    return settings
