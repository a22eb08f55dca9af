"""Importing text and image encoders without everything transformers brings along.

`from transformers import UMT5EncoderModel` also imports accelerate, scipy, sympy, torch.distributed's tensors and torch's compiler:
4.9 s of CPU and 1,350 modules, of which the encoders use none; like this 1.9 s. transformers asks for most of them as for packages that
need not be there. While the first class is imported they look as if they were not, and two modules that it imports anyway are replaced by
stand-ins, which lead to the real ones where they are called. Afterwards whoever imports accelerate, torch._dynamo, … gets the real ones.
If a version of transformers does not go along with this, the plain import is used.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import sys
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from .. import imports
from .left_out import StandIn, empty_class, not_installed

if TYPE_CHECKING:
    pass

logger = logging.getLogger(__name__)

LEFT_OUT = ("accelerate", "scipy", "peft", "sklearn", "kernels")
"""Optional packages that `import transformers` would import where they are installed."""

UNUSED = ("transformers.generation.continuous_batching", "transformers.generation.continuous_batching.cache")
"""Parts of transformers from which its attention imports names for a server's cache."""

COMPILER = ("torch._dynamo", "torch._dynamo._trace_wrapped_higher_order_op")
"""torch's compiler: transformers marks functions for it (a decorator, which changes nothing without it), and traces masks with it."""

_lock = threading.Lock()


def _function(module: str, name: str) -> Callable[..., Any]:
    """A function that calls the real one, or as a decorator returns what it decorates."""

    def stand_in(*given: Any, **settings: Any) -> Any:
        if isinstance(sys.modules.get(module), StandIn):  # still importing: a decorator
            return given[0] if given and callable(given[0]) else lambda decorated: decorated
        return getattr(importlib.import_module(module), name)(*given, **settings)

    return stand_in


def from_transformers(*names: str) -> list[Any]:
    """Classes of transformers by name."""
    with _lock, imports.large():
        if "transformers" not in sys.modules:
            try:
                with _lean():
                    return _classes(names)
            except (ImportError, AttributeError, RuntimeError, TypeError) as error:
                logger.info("transformers does not import lean (%s: %s); importing all of it", type(error).__name__, error)
                for name in [name for name in sys.modules if name.partition(".")[0] == "transformers"]:
                    del sys.modules[name]
        return _classes(names)


def _classes(names: tuple[str, ...]) -> list[Any]:
    transformers = importlib.import_module("transformers")
    return [getattr(transformers, name) for name in names]


@contextlib.contextmanager
def _lean() -> Iterator[None]:
    compiler = () if COMPILER[0] in sys.modules else COMPILER  # it is there whole, or not at all
    stand_ins = {name: StandIn(name, empty_class) for name in UNUSED} | {name: StandIn(name, _function) for name in compiler}
    with not_installed(LEFT_OUT):
        sys.modules.update(stand_ins)
        try:
            _without_torch_distributed()
            yield
        finally:
            for name in stand_ins:
                del sys.modules[name]


def _without_torch_distributed() -> None:
    """transformers asks once whether there is a torch.distributed, and remembers the answer: no."""
    import torch.distributed

    utils = importlib.import_module("transformers.utils.import_utils")
    really = torch.distributed.is_available
    torch.distributed.is_available = lambda: False
    try:
        utils.is_torch_distributed_available()
    finally:
        torch.distributed.is_available = really


@contextlib.contextmanager
def empty_weights() -> Iterator[None]:
    """What is built inside lies on "meta", and nothing is drawn for it: on "meta" that would import torch's compiler."""
    import torch
    from torch.overrides import TorchFunctionMode

    class Undrawn(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
            given = kwargs or {}
            if getattr(func, "__name__", "") in _DRAWING:
                return args[0] if args else given["tensor"]
            return func(*args, **given)

    with torch.device("meta"), Undrawn():
        yield


_DRAWING = ("normal_", "uniform_", "trunc_normal_", "kaiming_uniform_", "kaiming_normal_", "xavier_uniform_", "xavier_normal_")
