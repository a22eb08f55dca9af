"""Runs in the backend's environment, by its path: prints as JSON which packages are there and which are incomplete.

Usage: python inspection.py [--files]. With --files every file that a package lists is looked for, which tells an installation
that was killed while unpacking from a finished one.
"""

from __future__ import annotations

import json
import sys
from importlib.metadata import distributions


def main() -> None:
    look_for_files = "--files" in sys.argv[1:]
    versions: dict[str, str] = {}
    incomplete: dict[str, str] = {}
    for distribution in distributions():
        name = (distribution.metadata["Name"] or "").lower().replace("_", "-")
        folder = str(distribution.locate_file(""))
        listed = distribution.files
        if not name or listed is None:
            incomplete[name or "unknown"] = str(getattr(distribution, "_path", folder))
            continue
        versions[name] = distribution.version
        if look_for_files and not all(distribution.locate_file(file).exists() for file in listed if file.suffix != ".pyc"):  # type: ignore[attr-defined]
            incomplete[name] = str(getattr(distribution, "_path", folder))
    print(json.dumps({"python": sys.version.split()[0], "prefix": sys.prefix, "versions": versions, "incomplete": incomplete}))


if __name__ == "__main__":
    main()
