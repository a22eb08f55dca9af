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
from typing import Any

from .. import imports
from .left_out import StandIn, empty_class, not_installed

logger = logging.getLogger(__name__)

LEFT_OUT = ("transformers", "accelerate", "peft", "scipy", "torch._dynamo", "flax", "onnxruntime", "bitsandbytes", "torchao", "xformers")
"""Optional packages. torch._dynamo is in the list because diffusers guards its import like an optional one."""

EMPTY = ("diffusers.loaders", "diffusers.models.unets", "diffusers.models.unets.unet_2d_blocks", "diffusers.hooks")
"""Parts of diffusers which modules of VAEs import names from at the top, without using them in a VAE's forward pass."""

BARE_PACKAGES = ("diffusers.models.autoencoders",)
"""Packages whose `__init__` imports all siblings; their modules are imported without running it."""

_lock = threading.Lock()


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
    diffusers = importlib.util.find_spec("diffusers")
    root = diffusers.submodule_search_locations[0] if diffusers and diffusers.submodule_search_locations else ""
    with not_installed(LEFT_OUT):
        try:
            for name in (*EMPTY, *BARE_PACKAGES):
                sys.modules[name] = StandIn(name, empty_class)
            for name in BARE_PACKAGES:
                sys.modules[name].__path__ = [f"{root}/{'/'.join(name.split('.')[1:])}"]
            yield
        finally:
            for name in [n for n in sys.modules if n not in before and n.partition(".")[0] == "diffusers"]:
                del sys.modules[name]
