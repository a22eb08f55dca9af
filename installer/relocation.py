"""A moved or copied home, or pack: what names the old place is made to name the new one, without a package manager or the internet."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path
from urllib.parse import urlparse
from urllib.request import url2pathname

from .environment import python_of
from .files import read_json, write_json

_SHEBANGS = re.compile(rb"""\A(?:#!(?!/bin/sh)[^\n]*\n|#!/bin/sh\n'''exec' [^\n]*\n' '''\n)""")
_SHEBANG_LONGEST = 127


def former_place(config: Path) -> Path | None:
    """The environment whose python config.json names."""
    try:
        interpreter = read_json(config).get("interpreter")
    except ValueError:
        return None
    return Path(interpreter).parent.parent if isinstance(interpreter, str) else None


def linked_to(environment: Path) -> Path | None:
    """The backend folder whose code the environment runs; None if it is not installed in place."""
    for found in _site(environment).glob("musubi_backend-*.dist-info/direct_url.json"):
        try:
            return Path(url2pathname(urlparse(str(read_json(found).get("url"))).path))
        except ValueError:
            return None
    return None


def link(environment: Path, backend: Path) -> bool:
    """Let the environment run the code in `backend`. False if it held no link that could be changed."""
    old = linked_to(environment)
    changed = False
    for path in _site(environment).glob("*musubi_backend*.pth"):
        lines = path.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
        if old is not None and str(old) in lines:
            text = "".join(f"{backend if line == str(old) else line}\n" for line in lines)
            path.write_text(text, encoding="utf-8", errors="surrogateescape")
            changed = True
    if changed:
        for found in _site(environment).glob("musubi_backend-*.dist-info/direct_url.json"):
            write_json(found, {**read_json(found), "url": backend.as_uri()})
    return changed


def mend_scripts(environment: Path, former: Path) -> None:
    """Scripts that start the python of `former` start this environment's. (Windows' are programs and stay; nothing of ours needs them.)"""
    folder = python_of(environment).parent
    for path in [environment / "pyvenv.cfg", *folder.iterdir()]:
        if path.is_symlink() or not path.is_file() or path.suffix == ".exe":
            continue
        data = path.read_bytes()
        old, new = str(former).encode(), str(environment).encode()
        if old not in data or b"\0" in data:
            continue
        start = _SHEBANGS.match(data) if sys.platform != "win32" else None
        if start and old in start[0]:
            data = _shebang(python_of(environment)) + data[start.end() :]
        quoted = b"=" + shlex.quote(str(environment)).encode().replace(b"\\", b"\\\\")
        data = re.sub(rb"=" + re.escape(old) + rb"$", quoted, data, flags=re.MULTILINE)
        path.write_bytes(data.replace(old, new))


def _shebang(python: Path) -> bytes:
    """A system takes neither blanks nor long paths in a script's first line; a shell does."""
    if " " in str(python) or len(str(python).encode()) + 2 > _SHEBANG_LONGEST:
        return f"#!/bin/sh\n'''exec' \"{python}\" \"$0\" \"$@\"\n' '''\n".encode()
    return f"#!{python}\n".encode()


def _site(environment: Path) -> Path:
    found = environment / "Lib" / "site-packages"
    return found if found.is_dir() else next(environment.glob("lib/python3*/site-packages"), found)
