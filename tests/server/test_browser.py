"""The pages in headless Chromium, on a real port: by keyboard, without an outside request, for everybody."""

from __future__ import annotations

from contextlib import contextmanager

import pytest

from avdistill.dataset.decisions import read_decisions
from avdistill.inputs import VideoInput
from avdistill.methods.supervised import SupervisedConfig
from avdistill.server.config import ServeConfig
from avdistill.training import ModelConfig, TrainConfig, train
from support.live_server import live

SERIOUS = ("serious", "critical")


@contextmanager
def opened(browser, server, path, *, width=1200, scheme="light"):
    """A page; at the end neither a complaint of the browser nor a request to another address."""
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page = context.new_page()
    complaints, asked = [], []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(server.url + path)
    try:
        yield page
        assert complaints == []
        assert [url for url in asked if not url.startswith((server.url + "/", f"blob:{server.url}/"))] == []
    finally:
        context.close()


def violations(page):
    """What axe-core finds serious or critical."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")
    found = axe.Axe().run(page).response["violations"]
    return [(each["id"], each["nodes"][0]["html"]) for each in found if each["impact"] in SERIOUS]


PAGES = ["/", "/clip/train_1", "/audit", "/predict", "/search?clip=train_1&space=run", "/runs", "/runs/run"]


@pytest.mark.parametrize(
    ("path", "scheme"), [*((path, "light") for path in PAGES), *((path, "dark") for path in PAGES[1:3])]
)
def test_no_serious_violation_and_no_sideways_scrolling_on_a_phone(browser, server, path, scheme):
    with opened(browser, server, path, width=360, scheme=scheme) as page:
        page.wait_for_load_state("networkidle")
        assert violations(page) == []
        assert page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") <= 0


def test_a_filter_and_a_clip_by_keyboard_and_seeking(browser, server):
    with opened(browser, server, "/") as page:
        page.get_by_label("split").focus()
        page.keyboard.type("test")
        page.keyboard.press("Enter")
        page.get_by_role("button", name="Filter").focus()
        page.keyboard.press("Enter")
        page.wait_for_url("**split=test**")
        page.get_by_role("link", name="test_1").focus()
        page.keyboard.press("Enter")
        page.wait_for_url("**/clip/test_1")
        moved = page.evaluate(
            """async () => {
                const player = document.getElementById("player");
                if (player.readyState < 1) await new Promise((done) => { player.onloadedmetadata = done; });
                player.currentTime = 0.6;
                await new Promise((done) => { player.onseeked = done; });
                return [player.currentTime, player.duration, player.seekable.end(0)];
            }"""
        )
        assert moved[0] == pytest.approx(0.6, abs=0.05)
        assert moved[1] == pytest.approx(1.0, abs=0.1)
        assert moved[2] > 0.6


def test_twenty_clips_by_keyboard_alone_give_twenty_decisions_that_train_accepts(browser, many_clips, tmp_path):
    table = tmp_path / "decisions.csv"
    with (
        live(ServeConfig(dataset=many_clips.folder, decisions=table)) as server,
        opened(browser, server, "/audit") as page,
    ):
        shown = []

        def clip():
            """The clip that is shown, once it is another than before."""
            page.wait_for_function("(last) => !['', last].includes(document.getElementById('clip').textContent)",
                                   arg=shown[-1] if shown else "")  # fmt: skip
            return page.locator("#clip").inner_text()

        for number in range(20):
            shown.append(clip())
            page.keyboard.press("n" if number % 3 == 2 else "y")
        shown.append(clip())
        page.keyboard.press("u")
        page.wait_for_function("(last) => document.getElementById('clip').textContent === last", arg=shown[19])
        page.keyboard.press("n")
        page.wait_for_function("(last) => document.getElementById('clip').textContent === last", arg=shown[20])
        page.keyboard.press("?")
        page.wait_for_function("() => document.getElementById('counts').textContent.startsWith('21 of 40')")
        page.keyboard.press(" ")  # pauses, whatever plays
        page.wait_for_function("() => document.getElementById('player').paused")
        page.keyboard.press(" ")
        page.wait_for_function("() => document.getElementById('player').currentTime > 0")
    decisions = read_decisions(table, many_clips)
    expected = ["drop_audio" if i % 3 == 2 else "keep" for i in range(19)] + ["drop_audio"]
    assert [(each.clip, each.kind) for each in decisions] == list(zip(shown[:20], expected, strict=True))
    view = VideoInput(frames=4, size=(24, 32), scale=(0.8, 1.0), ratio=(1.2, 1.6), hflip=False)
    config = TrainConfig(
        dataset=many_clips.folder,
        out=tmp_path / "run",
        student=ModelConfig("shifted_frames", view, {"width": 8, "embedding_dim": 16}),
        method=SupervisedConfig(),
        decisions=table,
        steps=1,
        batch_size=4,
    )
    assert train(config).is_dir()


def test_an_upload_is_played_beside_its_timeline(browser, server, video):
    with opened(browser, server, "/predict") as page:
        page.get_by_label("video or audio file").set_input_files(video)
        page.get_by_role("button", name="Predict").click()
        page.locator("#result h2").wait_for()
        assert page.locator("#status").inner_text() == "done"
        assert page.locator(".timeline rect").count() >= 2
        assert violations(page) == []
        page.wait_for_function("() => document.getElementById('player').readyState >= 1")
        assert page.evaluate("document.getElementById('player').duration") == pytest.approx(3.0, abs=0.2)
        page.locator(".seek").last.focus()
        start = float(page.locator(".seek").last.get_attribute("data-seconds"))
        page.keyboard.press("Enter")
        page.wait_for_function("(start) => document.getElementById('player').currentTime >= start", arg=start)
        with page.expect_download() as download:
            page.get_by_role("link", name="CSV").click()
        assert download.value.path().read_text().startswith("file,start_seconds,end_seconds,label,probability")


def test_search_by_a_file_finds_its_clip_first(browser, server, small_set):
    with opened(browser, server, "/search") as page:
        page.get_by_label("or file").set_input_files(small_set[0] / "test_2.mp4")
        page.get_by_role("button", name="Search by file").click()
        page.locator("#result .grid").wait_for()
        assert page.locator("#result .grid b").first.inner_text() == "test_2"
        page.get_by_role("textbox", name="clip", exact=True).fill("test_2")
        page.locator("select[name=space]").first.select_option("run")
        page.keyboard.press("Enter")
        page.get_by_role("button", name="Search", exact=True).click()
        page.wait_for_url("**clip=test_2**")
        assert page.locator("#result .grid b").count() > 5
        assert "test_2" not in page.locator("#result .grid b").all_inner_texts()


def test_a_hostile_upload_is_answered_in_words(browser, server, tmp_path):
    file = tmp_path / "<img src=x onerror=alert(1)>.mp4"
    file.write_bytes(bytes(3000))
    with opened(browser, server, "/predict") as page:
        page.get_by_label("video or audio file").set_input_files(file)
        page.get_by_role("button", name="Predict").click()
        page.wait_for_function("() => document.getElementById('status').textContent.startsWith('the file')")
        assert page.locator("#result").inner_text() == ""
