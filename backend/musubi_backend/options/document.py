"""`python -m musubi_backend.options.document` writes `docs/flags.md` from the tables."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from .. import atomic
from .describe import bounds, default_text, kind_name
from .option import Group, Option
from .registry import Tool, tools

PAGE = Path(__file__).resolve().parents[3] / "docs" / "flags.md"
_HEAD = """# Flags

Written by `python -m musubi_backend.options.document`; do not edit by hand.

Names, defaults and choices are those of musubi-tuner 0.3.4. A key of `--config_file` is the flag without its dashes.
A flag marked **no** is rejected with the reason given, never ignored; setting it to its default is allowed.
"No effect" marks flags about something that works differently here; they are accepted and change nothing.
"""


def page() -> str:
    """The whole page, in Markdown."""
    return "\n".join([_HEAD, *(line for tool in tools().values() for line in _tool(tool))])


def _tool(tool: Tool) -> Iterator[str]:
    done = sum(option.unsupported is None for option in tool.options)
    yield f"## {tool.name}\n"
    yield f"{tool.summary}. {done} of {len(tool.options)} flags are supported.\n"
    for group in tool.groups:
        yield from _group(group)


def _group(group: Group) -> Iterator[str]:
    yield f"### {group.title}\n"
    yield "| flag | takes | default | supported | what it does |"
    yield "|---|---|---|---|---|"
    for option in group.options:
        default = "required" if option.required else default_text(option)
        cells = (f"`{option.flag}`", _takes(option), default, _done(option), option.explanation)
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
    yield ""


def _takes(option: Option) -> str:
    words = ", ".join(f"`{choice}`" for choice in option.choices) if option.choices else kind_name(option)
    return ", ".join(part for part in (words, bounds(option), option.unit) if part)


def _done(option: Option) -> str:
    if option.unsupported:
        return f"**no**: {option.unsupported}"
    if option.no_effect:
        return f"no effect: {option.no_effect}"
    if option.unsupported_choices:
        reasons = "; ".join(dict.fromkeys(option.unsupported_choices.values()))
        return f"without {', '.join(f'`{choice}`' for choice in option.unsupported_choices)}: {reasons}"
    if option.own_choices:
        return f"yes; musubi-tuner has no {', '.join(f'`{choice}`' for choice in option.own_choices)}"
    return "yes; musubi-tuner has no such flag" if option.own else "yes"


if __name__ == "__main__":
    atomic.write_text(PAGE, page())
    sys.stdout.write(f"{PAGE}\n")
