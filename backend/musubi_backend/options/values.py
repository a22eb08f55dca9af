"""Whether a value suits an option: the one place that knows kinds, bounds, choices and rejections.

Functions raise ValueError with the rest of a sentence ("must be at least 1, not 0"); callers say what is meant, the flag on
the command line or the key in a file.
"""

from __future__ import annotations

import math
import os
from typing import Any

from ..suggest import did_you_mean
from .option import Option

_ACCEPTED: dict[Any, tuple[type, ...]] = {str: (str,), int: (int,), float: (int, float), bool: (bool,)}
_KIND_WORDS: dict[Any, str] = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}


def default_of(option: Option) -> Any:
    """The default as the namespace holds it: a fresh list where the option takes several values."""
    return list(option.default) if isinstance(option.default, tuple) else option.default


def kind_words(option: Option) -> str:
    """What one value is, for people."""
    return _KIND_WORDS.get(option.kind, "a number or a percentage")


def from_text(option: Option, text: str) -> Any:
    """One word of a command line as a value of `option`."""
    try:
        value = option.kind(text)
    except ValueError:
        raise ValueError(f"must be {kind_words(option)}, not {text!r}") from None
    return _within(option, value)


def gigabytes(text: str) -> float | None:
    """A size of memory in GB; None for what is none."""
    try:
        number = float(text)
    except ValueError:
        return None
    return number if 0 < number < math.inf else None


def checked(option: Option, value: Any) -> Any:
    """`value`, from a settings file or a widget, as the command line would have given it."""
    if option.nargs is None:
        return _single(option, value)
    if not isinstance(value, (list, tuple)):
        raise ValueError(f"must be a list of values, not {value!r}")
    if isinstance(option.nargs, int) and len(value) != option.nargs:
        raise ValueError(f"must have {option.nargs} values, not {len(value)}")
    return [_single(option, item) for item in value]


def why_unsupported(option: Option, value: Any) -> str | None:
    """Why this backend does not do `option` with `value`, or None if it does."""
    if option.unsupported and value != default_of(option) and value not in option.neutral:
        what, reason = option.flag, option.unsupported
    elif isinstance(value, str) and value in option.unsupported_choices:
        what, reason = f"{option.flag} {value}", option.unsupported_choices[value]
    else:
        return None
    return f"{what} is not supported: {reason}. Use the musubi-tuner engine for it."


def _single(option: Option, value: Any) -> Any:
    """A Python value instead of a word: numbers must be numbers, text must be text, true is not 1."""
    kind = option.kind
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if not isinstance(value, _ACCEPTED.get(kind, (str, int, float))) or (isinstance(value, bool) and kind is not bool):
        raise ValueError(f"must be {kind_words(option)}, not {value!r}")
    if kind in (str, int, bool):
        return _within(option, value)
    return from_text(option, value if isinstance(value, str) else repr(value))


def _within(option: Option, value: Any) -> Any:
    if option.choices is not None and value not in option.choices:
        raise ValueError(f"must be one of {', '.join(option.choices)}; not {value!r}{did_you_mean(str(value), option.choices)}")
    if isinstance(value, str):
        if "\0" in value:
            raise ValueError("must not contain a zero byte")
        return value
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"must be a finite number, not {value}")
    unit = f" {option.unit}" if option.unit else ""
    if option.minimum is not None and value < option.minimum:
        raise ValueError(f"must be at least {option.minimum:g}{unit}, not {value}")
    if option.maximum is not None and value > option.maximum:
        raise ValueError(f"must be at most {option.maximum:g}{unit}, not {value}")
    return value
