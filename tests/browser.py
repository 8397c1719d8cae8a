"""A real Chromium, for tests of pages: the system's, else the one that playwright has fetched; where there is none, a skip."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PATIENCE = 120_000
"""Milliseconds: a busy machine is slow, and nothing here is timed."""


@contextmanager
def chromium() -> Iterator[Any]:
    """A browser without a window."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (pip install 'zephyr-kit[dev]')")
    with sync_api.sync_playwright() as playwright:
        path = next(filter(None, map(shutil.which, NAMES)), None) or playwright.chromium.executable_path
        if not Path(path).exists():
            pytest.skip(f"no browser: install one of {', '.join(NAMES)}, or run `playwright install chromium`")
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-dev-shm-usage"], timeout=PATIENCE)
        yield browser
        browser.close()


@contextmanager
def opened(browser: Any, address: str, **context: Any) -> Iterator[Any]:
    """A page, which must leave the console empty and ask for nothing but its own address."""
    page = browser.new_page(**context)
    page.set_default_timeout(PATIENCE)
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    own = (address.partition("#")[0], "data:", "blob:")
    page.on("request", lambda request: None if request.url.startswith(own) else complaints.append(f"asks for {request.url}"))
    page.goto(address)
    yield page
    page.close()
    assert not complaints, complaints


def barriers(page: Any) -> list[str]:
    """What axe finds that keeps somebody from using the page as it stands."""
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(page).response["violations"]
    return [f"{one['id']}: {one['help']}: {one['nodes'][0]['html'][:200]}" for one in found]
