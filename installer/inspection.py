"""Runs in the backend's environment, by its path: prints as JSON which packages are there and which are incomplete.

Usage: python inspection.py [--files]. With --files every file that a package lists is looked for, which tells an installation
that was killed while unpacking from a finished one, and the sizes of all files are given, by their paths in the environment.
"""

from __future__ import annotations

import json
import os
import sys
from importlib.metadata import Distribution, distributions
from pathlib import Path


def main() -> None:
    look_for_files = "--files" in sys.argv[1:]
    versions: dict[str, str] = {}
    incomplete: dict[str, str] = {}
    files: dict[str, dict[str, int]] = {}
    for distribution in distributions():
        name = (distribution.metadata["Name"] or "").lower().replace("_", "-")
        folder = str(distribution.locate_file(""))
        listed = distribution.files
        if not name or listed is None:
            incomplete[name or "unknown"] = str(getattr(distribution, "_path", folder))
            continue
        versions[name] = distribution.version
        if look_for_files:
            files[name], whole = _sizes(distribution)
            if not whole:
                incomplete[name] = str(getattr(distribution, "_path", folder))
    said = {"python": sys.version.split()[0], "prefix": sys.prefix, "versions": versions, "incomplete": incomplete, "files": files}
    print("\n" + json.dumps(said))


def _sizes(distribution: Distribution) -> tuple[dict[str, int], bool]:
    """The size of each file, and whether all are there with the sizes that the package lists."""
    sizes: dict[str, int] = {}
    whole = True
    for file in distribution.files or ():
        if file.suffix == ".pyc":
            continue
        path = os.path.normpath(str(distribution.locate_file(file)))
        try:
            size = Path(path).stat().st_size
        except OSError:
            whole = False
            continue
        whole = whole and file.size in (None, size)
        sizes[os.path.relpath(path, sys.prefix)] = size
    return sizes, whole


if __name__ == "__main__":
    main()
