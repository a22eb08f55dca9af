"""An architecture's folder holds everything that knows it: code outside names no family, but for what is listed here with its reason.
Comments and docstrings may say an example.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from musubi_backend.architectures import cards

AREAS = ("nodes", "workflows", "headless", "backend/musubi_backend")
# Only gets shorter
EXCEPTIONS = {
    "backend/musubi_backend/architectures/*/": "the folders",
    "backend/musubi_backend/encoders/": "VAEs and text encoders are called after the model they were made for; several families share them",
    "backend/musubi_backend/demo/": "tiny encoders, likewise",
    "backend/musubi_backend/inference/samplers.py": "a schedule is called after the paper or model it comes from",
    "backend/musubi_backend/options/tables/unsupported_tools.py": "names of musubi-tuner's tools",
}


def named(source: str) -> list[str]:
    """The lines of code, without comments and docstrings, that name a family by its name or its id."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        for body in (value for _, value in ast.iter_fields(node) if isinstance(value, list)):
            body[:] = [one for one in body if not (isinstance(one, ast.Expr) and isinstance(one.value, ast.Constant))] or body
    words = (word.lower() for card in cards().values() for word in (card.family, card.title, card.name))
    names = {match[0] for word in words if (match := re.match(r"[a-z]+", word))}
    whole = rf"(?<![a-z])({'|'.join(sorted(names))})(?!t|db)"  # "wants" and "wandb" are no models
    ids = rf"(?<!\w)({'|'.join(cards())})(?!\w)"
    return [line for line in ast.unparse(tree).splitlines() if re.search(whole, line, re.IGNORECASE) or re.search(ids, line)]


@pytest.mark.parametrize("line", ["cards()['wan']", "class WanLoRATrainer:", "if card.id == 'fp':", "x = _hunyuan()", "y = 'FramePack'"])
def test_a_name_is_found_however_it_is_written(line: str) -> None:
    inner = "    pass\n" if line.endswith(":") else ""
    assert named(f'"""Of Wan."""\nx = 1  # FramePack too\n{line}\n{inner}fp_window = wanted\n') == [line]


@pytest.mark.parametrize("area", AREAS)
def test_an_area_names_no_family(repository: Path, area: str) -> None:
    files = [path.relative_to(repository) for path in sorted((repository / area).rglob("*.py"))]
    looked_at = [path for path in files if not any(path.as_posix().startswith(one) or path.match(f"{one}*") for one in EXCEPTIONS)]
    found = {str(path): named((repository / path).read_text(encoding="utf-8")) for path in looked_at}
    assert {path: lines for path, lines in found.items() if lines} == {}
    assert found
