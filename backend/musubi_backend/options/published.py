"""`--ckpt_dir`: a folder as the makers of a model publish it, in place of naming its files one by one. Standard library only."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from ..architectures import cards
from ..errors import UserError
from .registry import Tool


def files_found(target: Tool, args: Namespace) -> dict[str, str]:
    """Option -> the file in `--ckpt_dir`, for model files that were not named. UserError when it is no such folder."""
    folder = getattr(args, "ckpt_dir", None)
    if not folder or target.architecture is None:
        return {}
    card = cards()[target.architecture]
    if not Path(folder).is_dir():
        raise UserError(f"--ckpt_dir: {folder} is not a folder")
    published = {part.name: part.published for part in card.parts if part.published}
    found = {part: _first(Path(folder), patterns) for part, patterns in published.items()}
    if not any(found.values()):
        names = ", ".join(patterns[0] for patterns in published.values())
        raise UserError(f"--ckpt_dir: {folder} holds none of the files that {card.title} is published with ({names})")
    return {part: str(path) for part, path in found.items() if path is not None and getattr(args, part) is None}


def _first(folder: Path, patterns: tuple[str, ...]) -> Path | None:
    return next((path for pattern in patterns for path in sorted(folder.glob(pattern))), None)
