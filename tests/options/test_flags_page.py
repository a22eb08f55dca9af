"""docs/flags.md is what the tables say."""

from __future__ import annotations

from pathlib import Path

from musubi_backend.options.document import page
from musubi_backend.options.registry import tools


def test_the_page_is_up_to_date(repository: Path) -> None:
    written = (repository / "docs" / "flags.md").read_text(encoding="utf-8")
    assert written == page(), "run: python -m musubi_backend.options.document"


def test_every_flag_of_every_tool_has_one_row() -> None:
    sections = page().split("\n## ")[1:]
    for tool, section in zip(tools().values(), sections, strict=True):
        assert section.startswith(tool.name)
        for option in tool.options:
            assert section.count(f"| `{option.flag}` |") == 1
            assert option.unsupported is None or option.unsupported in section
