"""The documentation as a site: built strictly, opened in a browser, searched without a network."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from support.pages import ROOT

pytest.importorskip("zensical", reason="the extra `docs` is not installed")
pytest.importorskip("mkdocstrings_handlers.python", reason="the extra `docs` is not installed")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Built as `make docs` does: a broken link or an unreachable page is an error of the build."""
    out = tmp_path_factory.mktemp("docs") / "site"
    build = [sys.executable, ROOT / "docs" / "site" / "build.py", "--out", out]
    done = subprocess.run(build, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return out


def test_pages_are_made_of_readme_docs_verbs_and_docstrings(site):
    first = (site / "index.html").read_text(encoding="utf-8")
    assert "make demo" in re.sub("<[^>]*>", "", first)  # the highlighter puts each word into a tag
    assert "can-i-use-it-without-a-gpu" in first
    assert 'id="prepare"' in (site / "cli.html").read_text(encoding="utf-8")
    assert "--short-side" in (site / "cli.html").read_text(encoding="utf-8")
    assert 'id="avdistill.training.train"' in (site / "api" / "training.html").read_text(encoding="utf-8")
    method = (site / "methods" / "robust.html").read_text(encoding="utf-8")
    assert "<mtable" in method
    assert "<mi>&</mi>" not in method  # a table that was not understood


@pytest.mark.parametrize("width", [1200, 390])
@pytest.mark.parametrize("page", ["index.html", "methods/robust_csc.html", "methods/choose.html", "cli.html"])
def test_a_page_fits_the_screen_and_asks_nothing_of_the_network(page, width, site, browser):
    tab = browser.new_page(viewport={"width": width, "height": 900})
    asked, complaints = [], []
    tab.on("request", lambda request: asked.append(request.url))
    tab.on("console", lambda message: complaints.append(message.text))
    tab.on("pageerror", lambda error: complaints.append(str(error)))
    tab.goto((site / page).as_uri())
    assert tab.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    broken = tab.evaluate("[...document.images].filter(each => each.complete && !each.naturalWidth).length")
    tab.close()
    assert broken == 0
    assert complaints == []
    assert [address for address in asked if not address.startswith(("file:", "data:", "blob:"))] == []


def test_search_works_offline(site, browser):
    tab = browser.new_page(viewport={"width": 1200, "height": 900})
    tab.goto((site / "index.html").as_uri())
    tab.keyboard.press("Control+k")
    tab.keyboard.type("mismatch probability", delay=5)
    # A section of docs/audit.md. What is found stands in a shadow tree, which a locator looks into.
    tab.locator("a", has_text="Columns of clips.csv").first.wait_for(timeout=60000)
    tab.close()


def broken(tmp_path, text):
    """What the checks say of a site of two pages, the second with this text."""
    sys.path.insert(0, str(ROOT / "docs" / "site"))
    try:
        from checking import check
    finally:
        sys.path.pop(0)
    (tmp_path / "index.html").write_text(f'<h1 id="top">A</h1>{text}', encoding="utf-8")
    return check(tmp_path, "index.html")


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ('<a href="nowhere.html">', "index.html: nowhere.html leads nowhere"),
        ('<a href="#bottom">', "index.html: #bottom: index.html has no #bottom"),
        ('<script src="https://cdn.example/x.js"></script>', "loads https://cdn.example/x.js from outside"),
        ('<link rel="stylesheet" href="//fonts.example/a.css">', "loads //fonts.example/a.css from outside"),
    ],
)
def test_what_a_site_must_not_have_is_found(text, fault, tmp_path):
    assert len(found := broken(tmp_path, text)) == 1
    assert fault in found[0]


def test_a_page_without_a_way_to_it_is_found(tmp_path):
    (tmp_path / "island.html").write_text("<h1>B</h1>", encoding="utf-8")
    assert broken(tmp_path, '<a href="#top">') == ["island.html: no page leads to it"]
    assert broken(tmp_path, '<a href="island.html">') == []
    assert Path(tmp_path / "island.html").exists()
