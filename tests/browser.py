"""A real Chromium for tests of the page: found, or installed where this may be done."""

import contextlib
import functools
import os
import shutil
import subprocess
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, sync_playwright

FLAGS = ["--no-sandbox", "--headless=new", "--disable-gpu"]
INSTALL = ["apt-get", "install", "--yes", "--no-install-recommends", "chromium"]


@functools.cache
def chromium_path() -> str | None:
    """Where it is; as root on Debian it is installed if it is missing."""
    names = ("chromium", "chromium-browser", "google-chrome")
    found = next(filter(None, map(shutil.which, names)), None)
    if found is None and shutil.which("apt-get") and os.geteuid() == 0:
        subprocess.run(["apt-get", "update"], check=False, capture_output=True)
        subprocess.run(
            INSTALL, check=False, capture_output=True, env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        )
        found = shutil.which("chromium")
    return found


@contextlib.contextmanager
def chromium() -> Iterator[Browser]:
    """A browser; skips the test where there is none."""
    path = chromium_path()
    if path is None:
        pytest.skip("there is no Chromium; install the package chromium to test the page")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()
