"""Settings of pip and uv that say where packages come from reach the private environment; those that say which, or where to, do not."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest

from installer import sources
from installer.console import clean_environment

WHERE = {
    "index-url": "https://mirror.example/simple",
    "extra-index-url": "https://a.example/simple https://b.example/simple",
    "find-links": "/wheels /more",
    "proxy": "http://proxy.example:3128",
    "cert": "/etc/corp.pem",
    "client-cert": "/etc/me.pem",
    "trusted-host": "a.example b.example",
    "timeout": "77",
    "retries": "9",
}
WHICH = {
    "constraint": "/nowhere/constraints.txt",
    "requirement": "/nowhere/requirements.txt",
    "target": "/nowhere/target",
    "prefix": "/nowhere/prefix",
    "root": "/nowhere/root",
    "user": "true",
    "no-binary": ":all:",
    "only-binary": "torch",
    "no-deps": "true",
    "pre": "true",
    "upgrade": "true",
    "ignore-installed": "true",
    "dry-run": "true",
    "no-build-isolation": "true",
    "build-constraint": "/nowhere/build.txt",
    "platform": "win_amd64",
    "require-hashes": "true",
    "require-virtualenv": "true",
    "python": "/nowhere/python",
    "report": "/nowhere/report.json",
    "uploaded-prior-to": "2020-01-01",
}
UV_WHICH = [
    "UV_CONSTRAINT",
    "UV_OVERRIDE",
    "UV_BUILD_CONSTRAINT",
    "UV_EXCLUDE",
    "UV_EXCLUDE_NEWER",
    "UV_PRERELEASE",
    "UV_RESOLUTION",
    "UV_PYTHON",
    "UV_SYSTEM_PYTHON",
    "UV_TARGET",
    "UV_TORCH_BACKEND",
    "UV_REQUIRE_HASHES",
    "UV_NO_BINARY",
    "UV_NO_BUILD",
    "UV_PROJECT",
    "UV_PROJECT_ENVIRONMENT",
    "UV_WORKING_DIR",
    "UV_CONFIG_FILE",
    "UV_NO_EDITABLE",
]


@pytest.fixture(autouse=True)
def _nothing_configured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [*os.environ]:
        if name.upper().startswith(("PIP_", "UV_")) or name.upper() in {
            "HTTP_PROXY",
            "HTTPS_PROXY",
            "SSL_CERT_FILE",
            "REQUESTS_CA_BUNDLE",
            "CURL_CA_BUNDLE",
        }:
            monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)


def _as_lines(section: str, settings: dict[str, str]) -> str:
    """As people write it: several values on lines of their own."""
    return f"[{section}]\n" + "".join(f"{name} =\n    " + "\n    ".join(value.split()) + "\n" for name, value in settings.items())


@pytest.mark.parametrize("where", ["file", "section install", "variables"])
def test_pip_gets_where_packages_come_from_and_nothing_else(where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if where == "variables":
        for name, value in {**WHERE, **WHICH}.items():
            monkeypatch.setenv("PIP_" + name.upper().replace("-", "_"), value)
    else:
        (tmp_path / "pip.conf").write_text(_as_lines("install" if "install" in where else "global", {**WHERE, **WHICH}))
        monkeypatch.setenv("PIP_CONFIG_FILE", str(tmp_path / "pip.conf"))
    found = sources.configured().pip
    assert {name: found["PIP_" + name.upper().replace("-", "_")] for name in WHERE} == WHERE
    assert not {"PIP_" + name.upper().replace("-", "_") for name in WHICH} & set(found)
    assert found["PIP_CONFIG_FILE"] == os.devnull, "pip reads no settings of its own besides these"


def test_uv_gets_what_pip_is_configured_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pip.conf").write_text(_as_lines("global", {**WHERE, **WHICH, "no-index": "yes"}))
    monkeypatch.setenv("PIP_CONFIG_FILE", str(tmp_path / "pip.conf"))
    found = sources.configured()
    assert found.uv == {
        "UV_DEFAULT_INDEX": "https://mirror.example/simple",
        "UV_INDEX": "https://a.example/simple https://b.example/simple",
        "UV_INDEX_STRATEGY": "unsafe-best-match",
        "UV_FIND_LINKS": "/wheels,/more",
        "HTTP_PROXY": "http://proxy.example:3128",
        "HTTPS_PROXY": "http://proxy.example:3128",
        "SSL_CERT_FILE": "/etc/corp.pem",
        "SSL_CLIENT_CERT": "/etc/me.pem",
        "UV_INSECURE_HOST": "a.example b.example",
        "UV_HTTP_TIMEOUT": "77",
        "UV_HTTP_RETRIES": "9",
        "UV_NO_CONFIG": "1",
    }
    assert found.no_index


def test_uvs_own_settings_count_more_and_only_those_about_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_FIND_LINKS", "/pips")
    monkeypatch.setenv("PIP_INDEX_URL", "https://pips.example/simple")
    for name in UV_WHICH:
        monkeypatch.setenv(name, "/nowhere")
    monkeypatch.delenv("UV_CONFIG_FILE")
    monkeypatch.setenv("UV_FIND_LINKS", "/mine")
    monkeypatch.setenv("UV_INDEX_URL", "https://mine.example/simple")
    monkeypatch.setenv("UV_INDEX_CORP_PASSWORD", "secret")
    found = sources.configured().uv
    assert (found["UV_FIND_LINKS"], found["UV_DEFAULT_INDEX"]) == ("/mine", "https://mine.example/simple")
    assert found["UV_INDEX_CORP_PASSWORD"] == "secret"
    assert not set(UV_WHICH) & set(found)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="the python has to read TOML")
def test_the_users_uv_toml_counts_for_its_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UV_CONFIG_FILE", str(tmp_path / "uv.toml"))
    (tmp_path / "uv.toml").write_text(
        'constraint-dependencies = ["tqdm<1"]\nno-index = true\n[[index]]\nname = "corp"\nurl = "https://corp.example/simple"\n'
        '[[index]]\nurl = "https://main.example/simple"\ndefault = true\n[[index]]\nurl = "https://one.example"\nexplicit = true\n'
        '[pip]\ntarget = "/nowhere"\nfind-links = ["/one", "/two"]\n'
    )
    found = sources.configured()
    assert found.uv == {
        "UV_DEFAULT_INDEX": "https://main.example/simple",
        "UV_INDEX": "corp=https://corp.example/simple",
        "UV_FIND_LINKS": "/one,/two",
        "UV_NO_CONFIG": "1",
    }
    assert found.no_index


def test_no_other_program_is_handed_variables_of_pip_and_uv(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_CONSTRAINT", "/nowhere")
    monkeypatch.setenv("UV_OVERRIDE", "/nowhere")
    assert not {name for name in clean_environment() if name.startswith(("PIP_", "UV_"))}


@pytest.mark.slow
def test_an_installation_is_not_led_astray_by_settings_for_another_environment(small_pack: Any, tmp_path: Path) -> None:
    home = tmp_path / "home"
    (home / ".config" / "pip").mkdir(parents=True)
    (home / ".config" / "pip" / "pip.conf").write_text(_as_lines("global", {"user": "true", "constraint": str(tmp_path / "none.txt")}))
    (tmp_path / "constraints.txt").write_text("tqdm==99\n")
    (tmp_path / "pip.conf").write_text(
        _as_lines("install", {"no-binary": ":all:", "prefix": str(tmp_path / "prefix")})
        + _as_lines("global", {"find-links": str(small_pack.wheels), "no-index": "true"})
    )
    astray = {"PIP_CONSTRAINT": str(tmp_path / "constraints.txt"), "PIP_TARGET": str(tmp_path / "target"), "PIP_NO_DEPS": "1"}
    done = small_pack.install(
        HOME=str(home), XDG_CONFIG_HOME=str(home / ".config"), PIP_CONFIG_FILE=str(tmp_path / "pip.conf"), PIP_FIND_LINKS="", **astray
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert not (tmp_path / "target").exists() and not (tmp_path / "prefix").exists()
    assert next((small_pack.home / "venv").rglob("tqdm-1.0.dist-info"))
