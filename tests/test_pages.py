"""What the pages say lies somewhere does."""

from __future__ import annotations

import re
from pathlib import Path

WALKS, DEBTS = 5, 8


def named(cell: str) -> list[str]:
    return re.findall(r"`([\w/]+\.py)", cell)


def cells(page: Path, column: int) -> list[str]:
    """A column of the page's table, without head and rule."""
    rows = [line.strip("|\n").split(" | ") for line in page.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    return [row[column] for row in rows[1:]]


def test_the_files_of_walks_and_debts_are_there(repository: Path) -> None:
    walks, debts = cells(repository / "docs" / "walks.md", 1), cells(repository / "docs" / "debts.md", 0)
    assert len(walks) == WALKS and len(debts) >= DEBTS
    assert all(len(named(cell)) > 4 for cell in walks)
    files = [file for cell in (*walks, *debts) for file in named(cell)]
    lost = [file for file in files if not any((root / file).is_file() for root in (repository, repository / "backend/musubi_backend"))]
    assert not lost
