"""Classes and their arguments named on the command line: optimizers and learning rate schedules of any library."""

from __future__ import annotations

import ast
import importlib
import inspect
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from ..errors import UserError
from ..suggest import did_you_mean


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
        except (ValueError, SyntaxError, MemoryError, RecursionError):  # the last two: of thousands of brackets or signs
            hint = f'; text needs quotes: {key}="{text}"' if text.replace("_", "").replace("-", "").isalpha() else ""
            raise UserError(f"{flag} {pair!r}: {text!r} is not a number, text in quotes, tuple, list, True, False or None{hint}") from None
    return arguments


def find_class(name: str, default_module: str, flag: str) -> Any:
    """The class (or function that makes one) `name`: "package.module.Class", or a bare name in `default_module`. Raises UserError with
    the closest names."""
    module_name, _, class_name = name.rpartition(".")
    module_name = module_name or default_module
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # a package may fail to load in any way
        raise UserError(
            f"{flag} {name}: cannot import {module_name} ({error}); install it into the backend's environment or check the name"
        ) from error
    found = getattr(module, class_name, None)
    if not callable(found) or class_name.startswith("_"):
        classes = [key for key, value in vars(module).items() if isinstance(value, type) and not key.startswith("_")]
        raise UserError(f"{flag} {name}: {module_name} has no class {class_name!r}{did_you_mean(class_name, classes)}")
    return found


def words(error: Exception) -> str:
    """What a foreign exception says, in one line."""
    return " ".join(str(error).split()) or type(error).__name__


def check_arguments(make: Any, arguments: Mapping[str, Any], flag: str, name: str, given: Collection[str]) -> None:
    """Reject arguments that `make`, called `name` on the command line, does not have or lacks. Classes with **kwargs swallow anything, so
    the names are those that it and its parents spell out. given: parameters that are not the user's to set."""
    spelled, required = _parameters(make)
    known = [key for key in spelled if key not in given]
    if known:
        for key in arguments:
            if key not in known:
                raise UserError(f"{flag} {key}: {name} has no such argument{did_you_mean(key, known)}; it takes {', '.join(known)}")
    missing = [key for key in required if key not in given and key not in arguments]
    if missing:
        raise UserError(f"{name} needs {' and '.join(missing)}: {flag} {' '.join(f'{key}=...' for key in missing)}")


def _parameters(make: Any) -> tuple[list[str], list[str]]:
    """Names of all keyword parameters of a class or function, and of those without a default. What **kwargs passes on to a parent class
    is the parent's; the base class of all optimizers is not looked at, as its parameters are no settings."""
    names: list[str] = []
    required: list[str] = []
    bases = [base for base in inspect.getmro(make) if "__init__" in vars(base)] if isinstance(make, type) else [make]
    for depth, base in enumerate(bases):
        if base is object or (isinstance(base, type) and f"{base.__module__}.{base.__name__}" in _BASES):
            break
        function = vars(base)["__init__"] if isinstance(base, type) else base
        try:
            parameters = inspect.signature(function).parameters.values()
        except (TypeError, ValueError):  # written in C
            break
        for parameter in list(parameters)[1 if isinstance(base, type) else 0 :]:
            if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY) and parameter.name not in names:
                names.append(parameter.name)
                if parameter.default is parameter.empty and depth == 0:
                    required.append(parameter.name)
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
            break
    return names, required


_BASES = ("torch.optim.optimizer.Optimizer", "torch.optim.lr_scheduler.LRScheduler")
