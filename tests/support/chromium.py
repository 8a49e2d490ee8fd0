"""A page in headless Chromium: `python tests/chromium.py PAGE PNG` makes a video of it for the documents."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from playwright.sync_api import Browser

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome", "chrome-headless-shell")


def find_browser() -> str | None:
    """A browser of this machine; none is ever downloaded."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


@contextmanager
def chromium(executable: str) -> Iterator[Browser]:
    """A running browser; --no-sandbox, because the kernel's sandbox is closed to root."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()


def opened(browser: Browser, page: Path, script: str, *, width: int = 1200) -> tuple[Any, list[str], list[str]]:
    """What a script finds on a page, what the browser complains of, and the addresses that the page asked for."""
    tab = browser.new_page(viewport={"width": width, "height": 900})
    complaints: list[str] = []
    asked: list[str] = []
    tab.on("console", lambda message: complaints.append(message.text))
    tab.on("pageerror", lambda error: complaints.append(str(error)))
    tab.on("requestfailed", lambda request: complaints.append(f"failed: {request.url[:80]}"))
    tab.on("request", lambda request: asked.append(request.url))
    tab.goto(page.resolve().as_uri())
    found = tab.evaluate(script)
    tab.close()
    return found, complaints, asked


def screenshot(browser: Browser, page: Path, png: Path, *, width: int = 1200, height: int = 1300) -> None:
    """The cards of an audit's page as PNG."""
    opened = browser.new_page(viewport={"width": width, "height": height})
    opened.goto(page.resolve().as_uri())
    opened.locator("h2", has_text="Most suspicious").evaluate("heading => heading.scrollIntoView()")
    opened.wait_for_function("() => [...document.querySelectorAll('video')].every(player => player.readyState >= 1)")
    opened.screenshot(path=png)
    opened.close()


if __name__ == "__main__":
    found = find_browser()
    if found is None:
        sys.exit(f"no browser on PATH; looked for {', '.join(NAMES)}")
    with chromium(found) as running:
        screenshot(running, Path(sys.argv[1]), Path(sys.argv[2]))
