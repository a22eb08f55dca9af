"""One window for all tests of recorded pages: each has an origin of its own, so none finds what another left in the browser. And the tab
with the training that runs, which several begin with."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from browser import Browser, opened

from .recorded import STATES, Recorded, page


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with opened(tmp_path_factory.mktemp("window")) as window:
        yield window


@pytest.fixture
def recorded() -> Recorded:
    return Recorded()


@pytest.fixture
def running(browser: Browser, recorded: Recorded) -> Iterator[Browser]:
    """The tab with the training that runs."""
    with page(recorded) as url:
        browser.open(url)
        row = f"document.querySelector(`[data-id='{STATES['running']['id']}']`)"
        browser.wait(f"{row} ? 1 : 0")
        browser.run(f"{row}.click();")
        browser.wait("document.querySelector('.mt-title')?.textContent ? 1 : 0")
        yield browser
