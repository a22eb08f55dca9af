"""Classes and their arguments named on the command line: optimizers and learning rate schedules of any library."""

from __future__ import annotations

import ast
import importlib
from collections.abc import Sequence
from typing import Any

from ..errors import UserError
from ..options.suggest import did_you_mean


def keyword_arguments(pairs: Sequence[str] | None, flag: str) -> dict[str, Any]:
    """["betas=(0.9, 0.99)", ...] -> keyword arguments; values are Python literals, never code.

    Raises UserError naming the pair that is not one.
    """
    arguments: dict[str, Any] = {}
    for pair in pairs or ():
        key, equals, text = pair.partition("=")
        if not equals or not key.strip().isidentifier():
            raise UserError(f"{flag} {pair!r} is not key=value")
        try:
            arguments[key.strip()] = ast.literal_eval(text.strip())
        except (ValueError, SyntaxError):
            hint = f'; text needs quotes: {key}="{text}"' if text.replace("_", "").replace("-", "").isalpha() else ""
            raise UserError(f"{flag} {pair!r}: {text!r} is not a number, text in quotes, tuple, list, True, False or None{hint}") from None
    return arguments


def find_class(name: str, default_module: str, flag: str) -> Any:
    """The class `name`: "package.module.Class", or a bare name in `default_module`. Raises UserError with the closest names."""
    module_name, _, class_name = name.rpartition(".")
    module_name = module_name or default_module
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise UserError(
            f"{flag} {name}: cannot import {module_name} ({error}); install it into the backend's environment or check the name"
        ) from error
    found = getattr(module, class_name, None)
    if not isinstance(found, type):
        classes = [key for key, value in vars(module).items() if isinstance(value, type) and not key.startswith("_")]
        raise UserError(f"{flag} {name}: {module_name} has no class {class_name!r}{did_you_mean(class_name, classes)}")
    return found
