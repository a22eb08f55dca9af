"""`--config_file`: settings from TOML, as musubi-tuner reads them, but checked.

Sections only order the file; keys are flags without dashes. A key that no tool has is an error, one that only other tools
have is mentioned and skipped, so that one file may serve several.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from ..documents import parse_toml
from ..errors import UserError
from ..suggest import did_you_mean
from .registry import Tool, tools
from .values import checked

logger = logging.getLogger(__name__)


def load(tool: Tool, path: str) -> dict[str, Any]:
    """Option name -> value from the file at `path` (".toml" is added where it is missing).

    Raises UserError naming the file and every key that is unknown or has a wrong value.
    """
    file = Path(path if path.endswith(".toml") else f"{path}.toml")
    mine = {option.name: option for option in tool.options}
    others = {option.name for other in tools().values() for option in other.options}
    values: dict[str, Any] = {}
    problems: list[str] = []
    for key, value in _flattened(file).items():
        if key == "config_file":
            problems.append("config_file: a settings file cannot name another one")
        elif key in mine:
            try:
                values[key] = checked(mine[key], value)
            except ValueError as error:
                problems.append(f"{key} {error}")
        elif key in others:
            logger.info("%s: %s is not an option of %s; skipped", file, key, tool.name)
        else:
            problems.append(f"{key} is not an option of any tool{did_you_mean(key, [*mine, *others])}")
    if problems:
        raise UserError(f"--config_file {file}:\n" + "\n".join(f"  {problem}" for problem in problems))
    logger.info("Loading settings from %s...", file)
    return values


def _flattened(file: Path) -> dict[str, Any]:
    try:
        content = parse_toml(file.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise UserError(f"--config_file: {file} does not exist") from None
    except (OSError, ValueError) as error:
        raise UserError(f"--config_file {file} cannot be read: {error}") from None
    flat: dict[str, Any] = {}
    for key, value in content.items():
        flat.update(value if isinstance(value, dict) else {key: value})
    return flat
