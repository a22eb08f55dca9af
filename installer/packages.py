"""Installs packages into the backend's environment with uv or pip, from the same sources that the user's pip and uv know."""

from __future__ import annotations

import functools
from pathlib import Path

from . import machine
from .console import Console, output_of
from .environment import python_of
from .sources import Sources, configured


class Packages:
    """The package installer of one environment."""

    def __init__(self, environment: Path, home: Path, console: Console) -> None:
        self._home = home
        self._console = console
        self._python = str(python_of(environment))
        self._uv = machine.find_uv(home)

    @property
    def tool(self) -> str:
        return "uv" if self._uv else "pip"

    @functools.cached_property
    def _sources(self) -> Sources:
        return configured()

    def install(
        self,
        requirements: list[str],
        *,
        constraints: Path | None = None,
        indexes: tuple[str, ...] = (),
        links: tuple[str, ...] = (),
        alone: bool = False,
        again: bool = False,
    ) -> None:
        """Install `requirements`. `indexes` and `links` (pages of wheels) are asked too, besides the configured sources; `alone` leaves
        dependencies out; `again` replaces what is installed even if it fits."""
        options = [*(["--constraint", str(constraints)] if constraints else []), *(["--no-deps"] if alone else [])]
        for link in links:
            options += ["--find-links", link]
        if self._uv:
            command = [*self._uv, "pip", "install", "--python", self._python, *(["--no-index"] if self._sources.no_index else [])]
            for index in indexes:
                command += ["--index", index, "--index-strategy", "unsafe-best-match"]
            command += ["--reinstall"] if again else []
            self._console.run([*command, *options, *requirements], self._sources.uv, self._home)
            return
        if output_of([self._python, "-m", "pip", "--version"]) is None:
            self._console.run([self._python, "-m", "ensurepip"])
        command = [self._python, "-m", "pip", "install", "--progress-bar", "off", *(["--force-reinstall"] if again else [])]
        for index in indexes:
            command += ["--extra-index-url", index, "--retries", "1"]
        self._console.run([*command, *options, *requirements], self._sources.pip)
