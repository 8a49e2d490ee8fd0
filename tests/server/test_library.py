"""The library and the page of a clip: filters, pages, media in ranges, hostile names."""

from __future__ import annotations

import csv
import io
from html.parser import HTMLParser
from urllib.parse import quote

import av
import numpy as np
import pytest

from avdistill.server.catalog import Catalog, Filter
from avdistill.server.config import ServeConfig
from avdistill.server.media import BusyError, FileCache
from support.audit_cases import changed
from support.live_server import live

EVIL = "\"'><script>alert(1)</script>"


class Links(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.clips, self.scripts = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        if tag == "script":
            self.scripts.append(dict(attrs))
        href = dict(attrs).get("href") or ""
        if tag == "a" and href.startswith("/clip/"):
            self.clips.append(href)


def listed(server, query=""):
    answer = server.ask(f"/?{query}")
    assert answer.status == 200
    return [link.removeprefix("/clip/") for link in Links(answer.text).clips]


def test_every_clip_is_listed_once_in_order(served, server):
    assert listed(server) == served[0].columns["id"].tolist()


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("split=test", [f"test_{i}" for i in range(6)]),
        ("split=train&labeled=yes", [f"train_{i}" for i in range(9)]),
        ("split=train&label=class_1", ["train_1", "train_4", "train_7"]),
        ("label=none", []),
        ("split=nothing", []),
        ("notes=yes", []),
    ],
)
def test_filters(server, query, expected):
    assert listed(server, query) == expected


def test_most_suspicious_first_as_the_audit_ranks(served, server):
    with (served[1] / "audit-train" / "clips.csv").open(newline="") as file:
        ranked = [row["id"] for row in csv.DictReader(file) if row["rank"]]
    assert listed(server, "order=mismatch")[: len(ranked)] == ranked
    half = listed(server, "order=mismatch&mismatch=0.5")
    assert half
    assert half == ranked[: len(half)]


@pytest.mark.parametrize("query", ["page=0", "page=-1", "page=x", "mismatch=x", "labeled=perhaps", "order=up"])
def test_impossible_values_are_refused(server, query):
    assert server.ask(f"/?{query}").status == 400


def test_pages_of_many_clips():
    class Many:
        """100,000 clips in a table, no frames."""

        def __init__(self):
            import pyarrow as pa

            n = 100_000
            self.table = pa.table(
                {
                    "split": ["train"] * n,
                    "labels": [[f"c{i % 7}"] if i % 2 else [] for i in range(n)],
                    "notes": pa.array([[]] * n, pa.list_(pa.string())),
                }
            )
            self.columns = {"id": np.array([f"clip_{i}" for i in range(n)], object)}
            self.columns |= {"split": np.array(["train"] * n, object)}

        def __len__(self):
            return self.table.num_rows

    catalog = Catalog(Many(), None)
    last = catalog.page(Filter(label="c3", labeled="yes"), 10**9)
    expected = [i for i in range(100_000) if i % 2 and i % 7 == 3]
    assert (last.total, last.pages) == (len(expected), -(-len(expected) // 48))
    assert last.clips.tolist() == expected[(last.pages - 1) * 48 :]


def test_a_clip_shows_labels_teacher_and_waveform(server):
    text = server.ask("/clip/train_1").text
    assert "class_1" in text
    assert "audio teacher audio, whole clip" in text
    assert text.count("<meter") >= 3
    assert "waveform, 1.0 s, peak -" in text
    assert server.ask("/clip/train_99").status == 404


def test_media_come_in_ranges(server):
    whole = server.ask("/media/player/train_1")
    assert (whole.status, whole.headers["accept-ranges"]) == (200, "bytes")
    part = server.ask("/media/player/train_1", Range="bytes=100-199")
    assert (part.status, part.body) == (206, whole.body[100:200])
    assert part.headers["content-range"] == f"bytes 100-199/{len(whole.body)}"
    assert server.ask("/media/player/train_1", Range=f"bytes={len(whole.body)}-").status == 416
    with av.open(io.BytesIO(whole.body)) as container:
        assert len(list(container.decode(video=0))) == 10
    image = server.ask("/media/thumbnail/train_1")
    assert image.headers["content-type"] == "image/jpeg"
    with av.open(io.BytesIO(image.body)) as container:
        assert (container.streams.video[0].width, container.streams.video[0].height) == (48, 32)


def test_hostile_ids_and_labels_are_text_and_no_paths(served, tmp_path):
    names = [EVIL, "../../etc/passwd", "a/b?c#d%2e", "line\nbreak", "Ünï ☃ \u202e", "..", "x" * 2000]
    ids = dict(zip([f"train_{i}" for i in range(len(names))], names, strict=True))
    dataset = changed(served[0], tmp_path / "dataset", {"id": ids, "split": {"train_1": EVIL}})
    with live(ServeConfig(dataset=dataset.folder)) as server:
        page = server.ask("/")
        assert Links(page.text).scripts == []
        links = Links(page.text).clips
        for name in names:
            link = "/clip/?id=.." if name == ".." else f"/clip/{quote(name, safe='')}"
            assert link in links
            answer = server.ask(link)
            assert answer.status == 200, name
            assert Links(answer.text).scripts == [{"src": "/static/timeline.js", "defer": None}]
            image = server.ask(link.replace("/clip/", "/media/thumbnail/"))
            assert image.body.startswith(b"\xff\xd8"), name
        for path in ("/media/player/../../../etc/passwd", "/static/../app.py", "/static/%2e%2e%2fapp.py"):
            assert server.ask(path).status == 404


def test_damaged_files_cost_their_clips_only_and_name_no_path(served, tmp_path, caplog):
    dataset = changed(served[0], tmp_path / "dataset")
    shard = next(dataset.folder.glob("frames-*.npy"))
    shard.write_bytes(shard.read_bytes()[:200])
    with live(ServeConfig(dataset=dataset.folder)) as server:
        assert server.ask("/").status == 200
        for path in ("/clip/train_1", "/media/thumbnail/train_1", "/media/player/train_1", "/api/clips/train_1"):
            answer = server.ask(path)
            assert answer.status in (404, 500)
            assert str(tmp_path) not in answer.text
        assert f"{shard}: damaged" in caplog.text
        assert server.ask("/").status == 200


def test_a_cache_is_bounded_and_makes_a_file_once(tmp_path):
    made = []
    cache = FileCache(tmp_path / "cache", 1000, makers=1, waiting=0)

    def make(name):
        made.append(name)
        return bytes(400)

    for name in ("a", "b", "a", "c", "b"):
        assert cache.open(name, lambda name=name: make(name)).stat().st_size == 400
    assert made == ["a", "b", "c", "b"]
    assert sum(file.stat().st_size for file in cache.folder.iterdir()) <= 1000
    with pytest.raises(BusyError):
        cache.open("d", lambda: cache.open("e", lambda: b"").read_bytes())
