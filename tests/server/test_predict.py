"""Uploads: what they get is what `predict` says, nothing of them is kept, and all that is hostile is refused."""

from __future__ import annotations

import csv
import io
import re
import socket
import threading
import time
from collections import Counter
from dataclasses import replace

import pytest

from avdistill.inference.prediction import SEGMENT_COLUMNS
from avdistill.inference.predictor import Student
from avdistill.server.config import Limits, ServeConfig
from support.live_server import MULTIPART, finished, live, multipart, until

EVIL = "\"'><script>alert(1)</script>=../../etc/passwd.mp4"


def uploads(server):
    return list(server.app.state.site.jobs.folder.iterdir())


def test_an_upload_gets_what_predict_says(served, server, video):
    expected = Student.from_pretrained(served[1]).predict(video)
    answer = server.upload("/api/predictions", video.read_bytes(), "my video.mp4", run="run")
    assert (answer.status, answer.headers["location"]) == (202, f"/api/predictions/{answer.json['id']}")
    found = finished(server, answer.json["id"])
    assert found["state"] == "done", found
    assert found["result"] == expected.describe() | {"file": "my video.mp4"}
    assert found["windows"] == expected.windows
    assert uploads(server) == []
    rows = list(csv.reader(io.StringIO(server.ask(f"/api/predictions/{found['id']}/segments.csv").text)))
    assert tuple(rows[0]) == SEGMENT_COLUMNS
    assert [(float(row[1]), row[3]) for row in rows[1:]] == [(s.start_seconds, s.label) for s in expected.segments]


def test_without_a_script_a_form_leads_to_the_result(server, video):
    answer = server.upload("/predict", video.read_bytes(), run="run")
    assert answer.status == 303
    page = until(lambda: (found := server.ask(answer.headers["location"])).headers.get("refresh") is None and found)
    assert page.text.count("<rect") >= 2
    assert "segments.csv" in page.text


def test_hostile_names_are_text(server, video):
    job = server.upload("/api/predictions", video.read_bytes(), EVIL.replace('"', "%22"), run="run").json["id"]
    assert finished(server, job)["state"] == "done"
    text = server.ask(f"/predict/{job}").text
    assert "alert(1)" in text
    assert "<script" not in re.sub(r'<script src="/static/\w+.js" defer></script>', "", text)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x00" * 5000, "the file"),
        (b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n", "the file"),
        (b"ffconcat version 1.0\nfile /etc/passwd\n", "the file"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "the file"),
    ],
)
def test_what_is_no_video_fails_in_one_line_without_paths(server, content, message):
    found = finished(server, server.upload("/api/predictions", content, run="run").json["id"])
    assert found["state"] == "failed"
    assert message in found["error"]
    assert str(server.app.state.site.workspace.folder) not in found["error"]
    assert uploads(server) == []
    page = server.ask(f"/predict/{found['id']}")
    assert 'role="alert"' in page.text


def test_calls_that_cannot_be_used(server, video):
    content = video.read_bytes()
    assert server.upload("/api/predictions", content, run="nothing").status == 400
    assert server.upload("/api/predictions", b"", run="run").status == 400
    assert server.ask("/api/predictions", "POST", b"x", content_type="text/plain").status == 415
    assert server.ask("/api/predictions", "POST", b"x" * 99, content_type=MULTIPART).status == 400
    assert server.ask("/api/predictions", "POST", b"", content_type=MULTIPART, content_length="9" * 15).status == 413
    many = multipart(content, "a", **{f"f{i}": "x" for i in range(9)})
    assert server.ask("/api/predictions", "POST", many, content_type=MULTIPART).status == 400
    long = multipart(content, "a", run="x" * 10_000)
    assert server.ask("/api/predictions", "POST", long, content_type=MULTIPART).status == 400
    assert server.ask("/api/predictions/nothing").status == 404
    assert server.ask("/predict/nothing").status == 404
    assert uploads(server) == []


@pytest.fixture(scope="module")
def narrow(served):
    """A server with tight limits."""
    limits = replace(Limits(), upload_bytes=200_000, uploads_at_once=2, waiting_jobs=2, stalled_seconds=0.5)
    with live(ServeConfig(runs=(served[1],), limits=limits)) as running:
        yield running


def test_a_file_that_is_too_large_is_refused_also_when_it_does_not_say_so(narrow):
    assert narrow.upload("/api/predictions", bytes(300_000), run="run").status == 413
    with socket.create_connection(("127.0.0.1", narrow.port), timeout=20) as client:
        client.sendall(
            f"POST /api/predictions HTTP/1.1\r\nHost: localhost\r\nContent-Type: {MULTIPART}\r\n"
            "Transfer-Encoding: chunked\r\n\r\n".encode()
        )
        chunk = multipart(bytes(50_000), "a", run="run")[:-10]
        for part in (chunk, *[bytes(50_000)] * 6):
            client.sendall(f"{len(part):x}\r\n".encode() + part + b"\r\n")
        assert client.recv(100).startswith(b"HTTP/1.1 413")
    assert uploads(narrow) == []


def test_a_client_that_stalls_or_leaves_costs_its_place_only_for_a_while(narrow, video):
    head = (
        f"POST /api/predictions HTTP/1.1\r\nHost: localhost\r\nContent-Type: {MULTIPART}\r\n"
        "Content-Length: 100000\r\n\r\n".encode()
        + multipart(bytes(1000), "a", run="run")[:500]
    )
    with socket.create_connection(("127.0.0.1", narrow.port), timeout=20) as stalls:
        with socket.create_connection(("127.0.0.1", narrow.port), timeout=20) as leaves:
            leaves.sendall(head)
        stalls.sendall(head)
        assert stalls.recv(100).startswith(b"HTTP/1.1 408")
    until(lambda: narrow.app.state.site.jobs._receiving == 0)
    assert narrow.upload("/api/predictions", video.read_bytes(), run="run").status == 202
    assert until(lambda: uploads(narrow) == [])


def test_a_hundred_uploads_at_once_are_answered_or_refused(narrow, video):
    content, found = video.read_bytes(), Counter()

    def send():
        found[narrow.upload("/api/predictions", content, run="run").status] += 1

    threads = [threading.Thread(target=send) for _ in range(100)]
    began = time.monotonic()
    for thread in threads:
        thread.start()
    while time.monotonic() < began + 2:
        assert narrow.ask("/predict").status == 200  # others are answered meanwhile
        assert len(uploads(narrow)) <= 6
    for thread in threads:
        thread.join()
    assert sum(found.values()) == 100
    assert set(found) <= {202, 429, 413, 503}
    assert found[202] >= 2
    assert until(lambda: uploads(narrow) == [])
