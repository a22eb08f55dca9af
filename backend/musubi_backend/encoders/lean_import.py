"""Importing one diffusers model without everything diffusers brings along.

`from diffusers import AutoencoderKLWan` also imports transformers, accelerate, scipy, torch._dynamo and diffusers' own
unets, loaders and forty other autoencoders: 3 to 7 s, more than caching a small dataset takes. None of it is used by the VAE.
While the one module is imported, those packages look as if they were not installed (diffusers treats them as optional) and
those parts of diffusers are replaced by empty modules. Afterwards `sys.modules` is as it was, so whoever imports diffusers,
accelerate, ... later gets the real ones. If a version of diffusers does not go along with this, the plain import is used.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import logging
import sys
import threading
from collections.abc import Iterator
from types import ModuleType
from typing import Any

from .. import imports

logger = logging.getLogger(__name__)

LEFT_OUT = ("transformers", "accelerate", "peft", "scipy", "torch._dynamo", "flax", "onnxruntime", "bitsandbytes", "torchao", "xformers")
"""Optional packages. torch._dynamo is in the list because diffusers guards its import like an optional one."""

EMPTY = ("diffusers.loaders", "diffusers.models.unets", "diffusers.models.unets.unet_2d_blocks", "diffusers.hooks")
"""Parts of diffusers which modules of VAEs import names from at the top, without using them in a VAE's forward pass."""

BARE_PACKAGES = ("diffusers.models.autoencoders",)
"""Packages whose `__init__` imports all siblings; their modules are imported without running it."""

_lock = threading.Lock()


class _EmptyModule(ModuleType):
    """A module that has any public name: a new empty class for each."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__path__: list[str] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        value = type(name, (), {"__module__": self.__name__})
        setattr(self, name, value)
        return value


@functools.lru_cache(maxsize=8)
def diffusers_class(module: str, name: str) -> Any:
    """The class `name` of the diffusers module `module` (e.g. "diffusers.models.autoencoders.autoencoder_kl_wan")."""
    if "diffusers" in sys.modules:
        return getattr(importlib.import_module(module), name)
    try:
        with _lock, imports.large(), _lean():
            return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, RuntimeError, TypeError) as error:
        logger.info("diffusers does not import lean (%s: %s); importing all of it", type(error).__name__, error)
        return getattr(importlib.import_module(module), name)


def diffusers_model(module: str, name: str, **config: Any) -> Any:
    """An instance of a diffusers class whose constructor imports more of diffusers. A ValueError of the constructor passes through."""
    if "diffusers" in sys.modules:
        return getattr(importlib.import_module(module), name)(**config)
    try:
        with _lock, imports.large(), _lean():
            return getattr(importlib.import_module(module), name)(**config)
    except (ImportError, AttributeError, RuntimeError, TypeError) as error:
        logger.info("diffusers does not import lean (%s: %s); importing all of it", type(error).__name__, error)
        return getattr(importlib.import_module(module), name)(**config)


@contextlib.contextmanager
def _lean() -> Iterator[None]:
    before = set(sys.modules)
    hidden = [name for name in LEFT_OUT if name not in sys.modules]
    find_spec = importlib.util.find_spec

    def find_visible(name: str, package: str | None = None) -> Any:
        return None if name in hidden else find_spec(name, package)

    importlib.util.find_spec = find_visible
    try:
        for name in hidden:
            sys.modules[name] = None  # type: ignore[assignment]  # makes `import name` raise ModuleNotFoundError
        for name in (*EMPTY, *BARE_PACKAGES):
            sys.modules[name] = _EmptyModule(name)
        diffusers = find_spec("diffusers")
        root = diffusers.submodule_search_locations[0] if diffusers and diffusers.submodule_search_locations else ""
        for name in BARE_PACKAGES:
            sys.modules[name].__path__ = [f"{root}/{'/'.join(name.split('.')[1:])}"]
        yield
    finally:
        importlib.util.find_spec = find_spec
        for name in [n for n in sys.modules if n not in before and (n in hidden or n.partition(".")[0] == "diffusers")]:
            del sys.modules[name]
