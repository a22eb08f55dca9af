"""Where packages come from: what the user configured for pip and uv, without what else is configured there.

Indexes, mirrors, folders of wheels, proxies, certificates and time limits hold for our environment too. What says *which* packages
are installed, or *where to* (constraint, target, user, no-binary, ...), was meant for another environment and is left out: neither
pip's settings files nor uv's, nor any PIP_ or UV_ variable, reach our installations but through this module.
"""

from __future__ import annotations

import configparser
import contextlib
import importlib
import importlib.util
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .console import output_of

# pip's option -> the variable by which uv knows it ("" for what has no counterpart, or is translated below).
_PIP = {
    "index-url": "UV_DEFAULT_INDEX",
    "extra-index-url": "UV_INDEX",
    "find-links": "UV_FIND_LINKS",
    "no-index": "",
    "trusted-host": "UV_INSECURE_HOST",
    "proxy": "",
    "cert": "SSL_CERT_FILE",
    "client-cert": "SSL_CLIENT_CERT",
    "timeout": "UV_HTTP_TIMEOUT",
    "retries": "UV_HTTP_RETRIES",
    "keyring-provider": "",
    "cache-dir": "",
    "no-cache-dir": "",
    "use-feature": "",
    "use-deprecated": "",
}
_OTHER_NAMES = {"default-timeout": "timeout", "pypi-url": "index-url"}
_UV = re.compile(
    r"UV_(DEFAULT_INDEX|INDEX|INDEX_URL|EXTRA_INDEX_URL|INDEX_\w+_(USERNAME|PASSWORD)|FIND_LINKS|INDEX_STRATEGY|KEYRING_PROVIDER"
    r"|INSECURE_HOST|NATIVE_TLS|SYSTEM_CERTS|OFFLINE|(HTTP|REQUEST|UPLOAD_HTTP|HTTP_CONNECT)_TIMEOUT|HTTP_RETRIES|CONCURRENT_\w+"
    r"|CACHE_DIR|NO_CACHE|LINK_MODE|PYTHON_(INSTALL_MIRROR|DOWNLOADS_JSON_URL|INSTALL_DIR|DOWNLOADS|CACHE_DIR))"
)
_OLD_UV = {"UV_INDEX_URL": "UV_DEFAULT_INDEX", "UV_EXTRA_INDEX_URL": "UV_INDEX"}
# The same in uv.toml; `index` is a list of tables and is handled apart.
_UV_FILE = {
    "index-url": "UV_DEFAULT_INDEX",
    "extra-index-url": "UV_INDEX",
    "find-links": "UV_FIND_LINKS",
    "index-strategy": "UV_INDEX_STRATEGY",
    "keyring-provider": "UV_KEYRING_PROVIDER",
    "allow-insecure-host": "UV_INSECURE_HOST",
    "native-tls": "UV_NATIVE_TLS",
    "system-certs": "UV_SYSTEM_CERTS",
    "offline": "UV_OFFLINE",
    "cache-dir": "UV_CACHE_DIR",
    "python-install-mirror": "UV_PYTHON_INSTALL_MIRROR",
    "python-downloads-json-url": "UV_PYTHON_DOWNLOADS_JSON_URL",
    "http-proxy": "HTTP_PROXY",
    "https-proxy": "HTTPS_PROXY",
    "no-proxy": "NO_PROXY",
}


@dataclass(frozen=True)
class Sources:
    """Variables for pip and for uv, and whether indexes are out of bounds (a switch of uv, which has no variable for it)."""

    pip: dict[str, str]
    uv: dict[str, str]
    no_index: bool


def configured() -> Sources:
    """What is configured on this machine. pip is asked by way of the python that runs us, as its settings files depend on it."""
    settings = pip_settings()
    own = {name: value for name, value in os.environ.items() if _UV.fullmatch(name.upper())}
    files = _uv_files()
    no_index = _true(settings.get("no-index", "")) or _true(files.pop("no-index", ""))
    return Sources(_for_pip(settings), _for_uv(settings, files, own), no_index)


def pip_settings() -> dict[str, str]:
    """pip's options that say where packages come from, settings files and variables together; several values stand on one line."""
    sections: dict[str, dict[str, str]] = {"global": {}, "install": {}}
    for path in _pip_files():
        parser = configparser.RawConfigParser()
        with contextlib.suppress(configparser.Error, UnicodeDecodeError, OSError):  # pip itself says what is wrong with it
            parser.read(path, encoding="utf-8")
        for name, found in sections.items():
            if parser.has_section(name):
                found.update(_wanted(parser.items(name)))
    variables = [(name[4:].lower(), value) for name, value in os.environ.items() if name.upper().startswith("PIP_")]
    return {**sections["global"], **sections["install"], **_wanted(variables)}


def _wanted(items: Iterable[tuple[str, str]]) -> dict[str, str]:
    named = ((name.replace("_", "-"), value) for name, value in items)
    options = ((_OTHER_NAMES.get(name, name), value) for name, value in named)
    return {name: " ".join(value.split()) for name, value in options if name in _PIP and value.strip()}


def _pip_files() -> list[Path]:
    """pip's settings files that exist, the lesser ones first. pip knows where they lie; `pip config list` heeds `user = true` in
    one of them and then shows no other, so its list of files is asked for."""
    own = os.environ.get("PIP_CONFIG_FILE")
    if own == os.devnull:
        return []
    found: dict[str, list[Path]] = {"global": [], "user": [], "site": [], "env": []}
    level = ""
    for line in (next(filter(None, (output_of([*pip, "config", "debug"]) for pip in _pips())), "")).splitlines():
        if header := re.fullmatch(r"(\w+):", line):
            level = header[1]
        elif (entry := re.fullmatch(r"\s+(.+), exists: True", line)) and level in found:
            found[level].append(Path(entry[1]))
    if own and Path(own).is_file():
        found["env"], found["user"] = [Path(own)], []
    return [path for level in ("global", "user", "site", "env") for path in found[level]]


def _pips() -> Iterator[list[str]]:
    """pip of this python, else the one that every full python brings for its virtual environments."""
    yield [sys.executable, "-m", "pip"]
    spec = importlib.util.find_spec("ensurepip")
    if spec and spec.origin:
        yield from ([sys.executable, str(wheel / "pip")] for wheel in Path(spec.origin).parent.glob("_bundled/pip-*.whl"))


def _for_pip(settings: Mapping[str, str]) -> dict[str, str]:
    variables = {"PIP_" + option.upper().replace("-", "_"): value for option, value in settings.items()}
    return {**variables, "PIP_CONFIG_FILE": os.devnull, "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_INPUT": "1"}


def _for_uv(settings: Mapping[str, str], files: Mapping[str, str], own: Mapping[str, str]) -> dict[str, str]:
    """uv reads none of pip's settings: hand it those, unless it has its own.

    Where several indexes are configured for pip, it takes the best version of all of them; uv is set to do the same.
    """
    variables = {_PIP[option]: value for option, value in settings.items() if _PIP[option]}
    if proxy := settings.get("proxy"):
        variables.update(HTTP_PROXY=proxy, HTTPS_PROXY=proxy)
    bundle = os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("CURL_CA_BUNDLE")
    if bundle and Path(bundle).is_file():
        variables.setdefault("SSL_CERT_FILE", bundle)
    if "UV_FIND_LINKS" in variables:
        variables["UV_FIND_LINKS"] = ",".join(variables["UV_FIND_LINKS"].split())
    if "UV_INDEX" in variables:
        variables["UV_INDEX_STRATEGY"] = "unsafe-best-match"
    for old, new in _OLD_UV.items():
        if old in own:
            own = {**{name: value for name, value in own.items() if name != old}, new: own.get(new, own[old])}
    merged = {**variables, **files}
    ours = {name: value for name, value in merged.items() if name not in os.environ and name.lower() not in os.environ}
    return {**ours, **own, "UV_NO_CONFIG": "1"}


def _uv_files() -> dict[str, str]:
    """The sources in the user's and the system's uv.toml; a project's settings (ComfyUI's own) are none of ours."""
    found: dict[str, str] = {}
    for path in _uv_file_places():
        data = _toml(path)
        for table in (data, data.get("pip") or {}):
            for key, variable in {**_UV_FILE, "no-index": "no-index"}.items():
                if key in table:
                    found[variable] = _text(table[key], "," if key == "find-links" else " ")
        named = [entry for entry in data.get("index") or [] if isinstance(entry, dict) and "url" in entry and not entry.get("explicit")]
        first = [str(entry["url"]) for entry in named if entry.get("default")]
        others = [
            f"{entry['name']}={entry['url']}" if "name" in entry else str(entry["url"]) for entry in named if not entry.get("default")
        ]
        if first:
            found["UV_DEFAULT_INDEX"] = first[0]
        if others:
            found["UV_INDEX"] = " ".join(others)
    return found


def _uv_file_places() -> list[Path]:
    """The lesser one first."""
    if named := os.environ.get("UV_CONFIG_FILE"):
        return [Path(named)]
    if sys.platform == "win32":
        bases = [Path(os.environ.get("PROGRAMDATA", r"C:\ProgramData")), Path(os.environ.get("APPDATA", os.path.expanduser("~")))]
    else:
        bases = [Path("/etc"), Path(os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config"))]
    return [base / "uv" / "uv.toml" for base in bases]


def _toml(path: Path) -> dict[str, Any]:
    """The file's contents; empty if it is missing, cannot be read, or this python (3.10) has nothing to read it with."""
    spec = next((name for name in ("tomllib", "tomli", "pip._vendor.tomli") if _there(name)), None)
    if spec is None or not path.is_file():
        return {}
    reader = importlib.import_module(spec)
    try:
        data: dict[str, Any] = reader.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return data


def _there(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ImportError:
        return False


def _text(value: Any, separator: str) -> str:
    if isinstance(value, bool):
        return "1" if value else "0"
    return separator.join(str(part) for part in value) if isinstance(value, list) else str(value)


def _true(text: str) -> bool:
    return text.strip().lower() in {"1", "true", "yes", "on", "y", "t"}
