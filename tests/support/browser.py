"""A real browser before the server's pages: Debian's Chromium, driven by Playwright."""

import os
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))

import install_browser

PATIENCE_MS = 60_000
"""For slow machines only: Playwright goes on as soon as it sees what it waits for."""
PHONE = {"width": 360, "height": 640}


@contextmanager
def browser():
    """A Chromium. Skips only where none can be installed, and never in CI."""
    path = install_browser.chromium()
    if path is None:
        missing = "there is no Chromium: python tools/install_browser.py"
        if os.environ.get("CI") or install_browser.apt():
            pytest.fail(missing)
        pytest.skip(f"{missing}, which needs apt and the right to use it")
    from playwright.sync_api import expect, sync_playwright

    expect.set_options(timeout=PATIENCE_MS)
    with sync_playwright() as playwright:
        # a container has no right to make the namespaces of Chromium's sandbox
        made = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield made
        made.close()


class Visit:
    """A page of the server at `url`, and what it asked for and complained of."""

    def __init__(self, browser, url, **options):
        self.url = url
        self.context = browser.new_context(**options)
        self.context.set_default_timeout(PATIENCE_MS)
        self.page = self.context.new_page()
        self.asked, self.errors, self.dialogs = [], [], []
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("console", self._said)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("dialog", self._opened)

    def _said(self, message):
        if message.type in ("error", "warning"):
            self.errors.append(message.text)

    def _opened(self, dialog):
        self.dialogs.append(dialog.message)
        dialog.dismiss()

    def open(self, path="/"):
        self.page.goto(self.url + path)
        return self.page

    def check(self, *, errors=0):
        """It said nothing wrong but for `errors` answers of the server, and asked nobody else for anything."""
        refused = [one for one in self.errors if one.startswith("Failed to load resource")]
        assert len(refused) >= errors
        assert self.errors[: 0 if errors else None] == []
        assert [one for one in self.errors if one not in refused] == []
        assert self.dialogs == []
        assert self.asked
        assert [url for url in self.asked if not url.startswith(self.url + "/")] == []

    def ask(self, text):
        self.page.get_by_label("Your question").fill(text)
        self.page.get_by_role("button", name="Send").click()

    def answers(self):
        return self.page.locator("article.assistant")

    def fits(self):
        """Nothing is wider than the window."""
        return self.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
