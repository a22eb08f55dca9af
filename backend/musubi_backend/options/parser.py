"""Reading a command line: argparse built from the table, `--config_file` merged in, everything checked before any work."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any, NoReturn

from ..errors import UserError
from ..suggest import did_you_mean
from . import former
from .describe import facts
from .option import Option
from .published import files_found
from .registry import Tool, tool, tools
from .rules import check
from .values import default_of, from_text, why_unsupported


def parse(tool_name: str, argv: Sequence[str]) -> argparse.Namespace:
    """All options of `tool_name` as attributes, with musubi-tuner's defaults where `argv` and `--config_file` are silent.

    Raises UserError for anything that cannot be run: unknown flags, wrong values, missing ones, files that are not there,
    settings this backend does not do. `--help` prints and raises SystemExit(0).
    """
    target = tool(tool_name)
    given = read(target, argv)
    args = argparse.Namespace(**{**vars(given), **files_found(target, given)})
    check(target, args)
    return args


def paths_given(target: Tool, args: argparse.Namespace) -> list[str]:
    """The files and folders that are named by the options of a tool."""
    values = (getattr(args, option.name) for option in target.options if option.path)
    return [path for value in values if value for path in (value if isinstance(value, list) else [value])]


def read(target: Tool, argv: Sequence[str]) -> argparse.Namespace:
    """`parse` without the rules between options and without looking at files (other than `--config_file`)."""
    explicit, unknown = build(target).parse_known_args(list(argv))
    if unknown:
        raise UserError(_unknown(target, unknown))
    for option in target.options:
        if option.nargs is None and getattr(explicit, option.name, None) == []:  # what argparse before Python 3.13 makes of "--"
            raise UserError(f"{option.flag}: the value cannot be '--'")
    values = {option.name: default_of(option) for option in target.options}
    if getattr(explicit, "config_file", None):
        from .config_file import load

        values.update(load(target, explicit.config_file))
    values.update(vars(explicit))
    refused = [reason for option in target.options if (reason := why_unsupported(option, values[option.name]))]
    if refused:
        raise UserError("\n".join(refused))
    return argparse.Namespace(**values)


def build(target: Tool) -> argparse.ArgumentParser:
    """The argparse parser of one tool. Defaults are left out of its namespace, so that what was given can be distinguished."""
    parser = _Parser(
        prog=f"python -m musubi_backend {target.name}",
        description=target.summary[0].upper() + target.summary[1:] + ".",
        formatter_class=_Formatter,
        argument_default=argparse.SUPPRESS,
        allow_abbrev=True,
    )
    for group in target.groups:
        section = parser.add_argument_group(group.title)
        for option in group.options:
            _add(section, option)
    return parser


def _add(section: argparse._ArgumentGroup, option: Option) -> None:
    if option.is_switch:
        section.add_argument(option.flag, action="store_true", default=argparse.SUPPRESS, help=_help(option))
        return

    def convert(text: str) -> Any:
        try:
            return from_text(option, text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    metavar = "{" + ",".join(option.choices) + "}" if option.choices else option.name.rsplit("_", 1)[-1].upper()
    default = None if option.is_positional else argparse.SUPPRESS  # argparse demands positional arguments by itself
    section.add_argument(option.flag, type=convert, nargs=option.nargs, metavar=metavar, default=default, help=_help(option))


def _help(option: Option) -> str:
    about = facts(option)
    note = (
        f" Not supported: {option.unsupported}."
        if option.unsupported
        else f" Has no effect: {option.no_effect}."
        if option.no_effect
        else ""
    )
    return (option.explanation + (f" ({about})" if about else "") + note).replace("%", "%%")


def _unknown(target: Tool, words: list[str]) -> str:
    flags = [word.split("=")[0] for word in words if word.startswith("-")]
    if not flags:
        return f"{target.name} does not know what to do with {words[0]!r}; put quotes around values with spaces"
    flag = flags[0]
    elsewhere = [other.name for other in tools().values() if flag in {option.flag for option in other.options}]
    have = f"; {', '.join(elsewhere)} {'has' if len(elsewhere) == 1 else 'have'} it"
    ours = [option.flag for option in target.options if not option.unsupported]
    hint = former.answer(flag, ours) or (have if elsewhere else did_you_mean(flag, ours))
    return f"{target.name} has no flag {flag}{hint}. A value that begins with '-' is written --flag=VALUE. All flags: --help"


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        text = message.removeprefix("argument ")
        if "expected" in text and "argument" in text:
            text += "; a value that begins with '-' is written --flag=VALUE"
        raise UserError(text)


class _Formatter(argparse.HelpFormatter):
    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=32, width=110)

    def _format_usage(self, usage: Any, actions: Any, groups: Any, prefix: Any) -> str:
        """One line: a hundred flags in a row help nobody."""
        return f"usage: {self._prog} --flag value ...\n\n"
