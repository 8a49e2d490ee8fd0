"""The pages of the server as PNG files for the documents:

python tests/support/server_screenshots.py DATASET STUDY INDEX VIDEO docs/images
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from avdistill.server.config import ServeConfig
from support.chromium import chromium, find_browser
from support.live_server import Live, live

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

WIDTH, HEIGHT = 1100, 760


def take(browser: Browser, server: Live, video: Path, out: Path) -> None:
    """Every page once, as a reader finds it."""

    def shot(name: str, path: str, prepare=lambda page: None, *, scheme: str = "light") -> None:
        context = browser.new_context(
            viewport={"width": WIDTH, "height": HEIGHT}, color_scheme=scheme, reduced_motion="reduce"
        )
        page = context.new_page()
        page.goto(server.url + path)
        page.wait_for_load_state("networkidle")
        prepare(page)
        page.wait_for_function(
            "() => [...document.images].every(i => i.complete || i.getBoundingClientRect().top > innerHeight)"
        )
        page.wait_for_timeout(300)
        page.screenshot(path=out / f"serve-{name}.png")
        context.close()

    clips = server.ask("/api/clips?split=test&labeled=yes&size=4").json["clips"]
    clip = clips[3]["id"]
    run = next(row["run"] for row in server.ask("/api/runs").json["runs"] if "robust_csc/seed-0" in row["run"])
    space = server.app.state.site.searcher.spaces[-1]
    shot("library", "/")
    shot("clip", f"/clip/{clip}")
    shot("search", f"/search?clip={clip}&space={space}")
    shot("predict", "/predict", lambda page: predict(page, video, run))
    shot("audit", "/audit", review, scheme="dark")
    shot("runs", f"/runs/{run.replace('/', '%2F')}")


def predict(page: Page, video: Path, run: str) -> None:
    page.locator("select[name=run]").select_option(run)
    page.locator("input[type=file]").set_input_files(video)
    page.get_by_role("button", name="Predict").click()
    page.locator("#result h2").wait_for()
    page.wait_for_function("() => document.getElementById('player').readyState >= 2")


def review(page: Page) -> None:
    for key in "nny":
        shown = page.locator("#clip").inner_text()
        page.keyboard.press(key)
        page.wait_for_function("(last) => document.getElementById('clip').textContent !== last", arg=shown)
    page.wait_for_function("() => document.getElementById('player').readyState >= 2")


if __name__ == "__main__":
    dataset, study, index, video, out = map(Path, sys.argv[1:])
    executable = find_browser()
    if executable is None:
        sys.exit("no browser on PATH")
    with tempfile.TemporaryDirectory() as folder:
        config = ServeConfig(dataset=dataset, runs=(study,), index=str(index), decisions=Path(folder) / "decisions.csv")
        with live(config) as server, chromium(executable) as browser:
            take(browser, server, video, out)
