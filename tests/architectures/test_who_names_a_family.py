"""An architecture's folder holds everything that knows it: code outside names no family. Each area that is clean is listed here."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from musubi_backend.architectures import cards

CLEAN = ("nodes", "workflows")


def named(text: str) -> list[str]:
    """The lines that name a family, by its name or as its id."""
    names = {re.match(r"[a-z]+", word.lower())[0] for card in cards().values() for word in (card.family, card.title, card.name)}  # type: ignore[index]
    whole = rf"(?<![a-z])({'|'.join(sorted(names))})(?!t)"  # "wants" is no model
    ids = rf"(?<!\w)({'|'.join(cards())})(?!\w)"
    return [line for line in text.splitlines() if re.search(whole, line, re.IGNORECASE) or re.search(ids, line)]


@pytest.mark.parametrize(
    "line", ['cards()["wan"]', "class WanLoRATrainer:", "# FramePack counts seconds", 'if card.id == "fp":', "_hunyuan()"]
)
def test_a_name_is_found_however_it_is_written(line: str) -> None:
    assert named(f"x = 1\n{line}\n# whoever wants it; fp_latent_window_size\n") == [line]


@pytest.mark.parametrize("area", CLEAN)
def test_an_area_names_no_family(repository: Path, area: str) -> None:
    found = {path: named(path.read_text(encoding="utf-8")) for path in sorted((repository / area).rglob("*.py"))}
    assert {str(path.relative_to(repository)): lines for path, lines in found.items() if lines} == {}
    assert found
