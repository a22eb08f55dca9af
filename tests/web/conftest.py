"""One window for all tests of recorded pages: each has an origin of its own, so none finds what another left in the browser."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from browser import Browser, opened


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with opened(tmp_path_factory.mktemp("window")) as window:
        yield window
