"""Optimizers of other libraries: installed by `install.py --with optimizers`, imported when chosen."""

from __future__ import annotations

from ..entry import Entry

ENTRIES: tuple[Entry, ...] = ()
