"""A real browser for the page of a library: Chromium, driven by playwright (`make test-search`)."""

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(TESTS / "train"), str(TESTS / "search")]  # for films, and for a library of them


def browser_path() -> str:
    """Where the browser is.

    Raises:
        pytest.UsageError: there is none.
    """
    for name in (os.environ.get("EMCL_BROWSER", ""), "chromium", "chromium-browser", "google-chrome"):
        if name and (found := shutil.which(name)):
            return found
    raise pytest.UsageError("no chromium is installed; on Debian and Ubuntu: apt-get install chromium")


@pytest.fixture(scope="session")
def browser() -> Iterator[object]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        # Without its sandbox, which needs rights that containers do not give.
        opened = driver.chromium.launch(executable_path=browser_path(), args=["--no-sandbox"])
        yield opened
        opened.close()
