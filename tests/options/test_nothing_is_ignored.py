"""A flag is supported, rejected, or has no effect; none is taken and forgotten."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from musubi_backend.options.registry import tools

_FOLDERS = {"wan": {"wan"}, "hv": {"hunyuan_video"}, "fp": {"framepack", "hunyuan_video"}}
"""Where the code of an architecture is; FramePack's encoders are HunyuanVideo's."""


@pytest.fixture(scope="module")
def files(repository: Path) -> dict[Path, str]:
    """All of the backend but the tables themselves."""
    package = repository / "backend" / "musubi_backend"
    found = {path.relative_to(package): path.read_text(encoding="utf-8") for path in package.rglob("*.py")}
    return {path: text for path, text in found.items() if "tables" not in path.parts}


@pytest.mark.parametrize("name", tools())
def test_every_accepted_flag_is_read_by_the_code_of_its_tool(name: str, files: dict[Path, str]) -> None:
    tool = tools()[name]
    others = set().union(*_FOLDERS.values()) - _FOLDERS.get(tool.architecture or "", set())
    code = "\n".join(text for path, text in files.items() if not others & set(path.parts))
    accepted = [option.name for option in tool.options if option.unsupported is None and option.no_effect is None]
    unread = [option for option in accepted if not re.search(rf"\.{option}\b|\"{option}\"", code)]
    assert not unread, "taken, but no code looks at them: do them, or give the table a `rejected` or `no_effect` reason"


def test_nothing_is_both_rejected_and_without_effect() -> None:
    for tool in tools().values():
        assert not [option.flag for option in tool.options if option.unsupported and option.no_effect]
