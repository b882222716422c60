"""A headless Chromium for tests of pages.

It needs Chromium, its driver (Debian: `chromium`, `chromium-driver`) and `selenium`. Where one is missing the test is
skipped, or fails if MGDET_REQUIRE_CHROMIUM=1 says that all have to be there. Screenshots are written into the directory
MGDET_SCREENSHOTS if it is set.
"""

import os
import shutil
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def chromium(profile, size):
    """A browser without any history, of a size such as "1920,1080" pixels, that keeps the log of its console.

    `profile` is a directory for what it writes.
    """
    binary, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if binary is None or driver is None:
        _missing("Chromium or its driver is not installed (Debian packages: chromium, chromium-driver)")
    try:
        from selenium import webdriver
    except ImportError as error:
        _missing(f"selenium is not installed: {error}")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    arguments = ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage")
    for argument in (*arguments, f"--window-size={size}", f"--user-data-dir={profile}"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options, webdriver.ChromeService(driver))
    try:
        yield browser
    finally:
        browser.quit()


def screenshot(browser, name):
    if directory := os.environ.get("MGDET_SCREENSHOTS"):
        browser.save_screenshot(str(Path(directory) / f"{name}.png"))


def _missing(what):
    if os.environ.get("MGDET_REQUIRE_CHROMIUM") == "1":
        pytest.fail(what)
    pytest.skip(what)
