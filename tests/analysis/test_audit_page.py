"""The audit's page in a real browser: it plays, in order and in peace, and nothing leaves it; its media by decoding."""

from __future__ import annotations

import base64
import csv
import io
from dataclasses import replace
from html.parser import HTMLParser

import av
import numpy as np
import pytest

from avdistill.analysis.audit import cards
from avdistill.analysis.audit.audit import audit, write_audit
from avdistill.analysis.audit.page import write_audit_page
from avdistill.media.encoder import displayed_size, encode_image, encode_webm
from avdistill.methods.mnf_csc import MNFCSCConfig
from avdistill.reporting.page import render
from support.audit_cases import changed, trained
from support.chromium import opened, screenshot

EVIL = "\"'><script>alert(1)</script>"
STATE = """async () => {
    const players = [...document.querySelectorAll("video, audio")];
    await Promise.all(players.map(player => new Promise((done, failed) => {
        if (player.readyState >= 1) return done();
        player.onloadedmetadata = done;
        player.onerror = () => failed(new Error("player: " + player.error?.message));
        player.load();
    })));
    await Promise.all([...document.images].map(image => image.decode()));
    return {
        players: players.map(p => ({
            kind: p.localName, ready: p.readyState, duration: p.duration, width: p.videoWidth, height: p.videoHeight,
            card: p.closest("[data-rank]").dataset.rank, label: p.getAttribute("aria-label"), controls: p.controls,
        })),
        cards: [...document.querySelectorAll("[data-rank]")].map(c => [+c.dataset.rank, c.dataset.id]),
        images: [...document.images].map(i => [i.naturalWidth, i.closest("[data-rank]") !== null, i.alt]),
        waves: [...document.querySelectorAll("svg[role=img]")].map(s => s.getAttribute("aria-label")),
        overflow: document.documentElement.scrollWidth - document.documentElement.clientWidth,
    };
}"""


@pytest.fixture(scope="module")
def audited(taught, tmp_path_factory):
    """A dataset with truths, and an audit of it by a run of three steps."""
    folder = tmp_path_factory.mktemp("audited")
    truth = {f"train_{i}": [("audio", "mismatched" if i % 2 else "related"), ("true_label", "x")] for i in range(16)}
    truth["train_1"] = [("audio", "mismatched"), ("audio_source", EVIL), ("true_label", EVIL)]
    dataset = changed(taught, folder / "dataset", {"extra": truth})
    run = trained(dataset, folder / "run", MNFCSCConfig())
    return dataset, audit(run, dataset)


def test_the_page_plays_in_a_browser(browser, audited, tmp_path):
    dataset, result = audited
    out = tmp_path / "audit"
    write_audit(out, result)
    write_audit_page(out / "audit.html", result, dataset, cards=6, contrast=4)
    (out / "scores.png").unlink()  # the page holds its images itself
    state, complaints, asked = opened(browser, out / "audit.html", STATE)
    assert complaints == []
    assert [url[:80] for url in asked if not url.startswith("data:")] == [(out / "audit.html").as_uri()[:80]]
    with (out / "clips.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["rank"]]
    expected = [[int(row["rank"]), row["id"]] for row in [*rows[:6], *rows[-4:]]]
    assert state["cards"] == expected
    assert [int(player["card"]) for player in state["players"]] == [rank for rank, _ in expected]
    for player, (_, name) in zip(state["players"], expected, strict=True):
        clip = dataset.columns["id"].tolist().index(name)
        seconds = len(dataset.frames(clip)) / dataset.fps
        assert player["kind"] == "video"
        assert player["controls"]
        assert player["ready"] >= 1
        assert abs(player["duration"] - seconds) <= 0.2
        assert (player["height"], player["width"]) == (192, 288)
        assert player["label"] == f"clip {name}"
    assert all(width > 0 and alt for width, _, alt in state["images"])
    assert sum(in_card for _, in_card, _ in state["images"]) == 3 * 10
    assert len(state["waves"]) == 10
    assert all(wave.startswith("waveform, 1.0 s, peak -") for wave in state["waves"])


def test_a_phone_need_not_scroll_sideways(browser, audited, tmp_path):
    dataset, result = audited
    write_audit_page(tmp_path / "audit.html", result, dataset, cards=3, contrast=0)
    state, complaints, _ = opened(browser, tmp_path / "audit.html", STATE, width=360)
    assert complaints == []
    assert state["overflow"] <= 0
    assert len(state["cards"]) == 3


def test_audio_alone_film_alone_and_neither(browser, audited, tmp_path):
    """Clips that lost their frames, their audio, both: what is left is shown."""
    dataset, result = audited
    first, second, third = (row["id"] for row in result.rows[:3])
    lost = changed(
        dataset,
        tmp_path / "dataset",
        {"has_video": {first: False, third: False}, "has_audio": {second: False, third: False}},
    )
    write_audit_page(tmp_path / "audit.html", result, lost, cards=3, contrast=0)
    state, complaints, _ = opened(browser, tmp_path / "audit.html", STATE)
    assert complaints == []
    assert [(p["kind"], p["card"], bool(p["width"])) for p in state["players"]] == [
        ("audio", "1", False),
        ("video", "2", True),
    ]
    assert all(abs(p["duration"] - 1.0) <= 0.2 for p in state["players"])
    assert len(state["waves"]) == 1
    assert sum(in_card for _, in_card, _ in state["images"]) == 3


def test_a_screenshot(browser, audited, tmp_path):
    dataset, result = audited
    write_audit_page(tmp_path / "audit.html", result, dataset, cards=4)
    screenshot(browser, tmp_path / "audit.html", tmp_path / "audit.png", width=800, height=1600)
    content = (tmp_path / "audit.png").read_bytes()
    assert content.startswith(b"\x89PNG")
    assert (int.from_bytes(content[16:20]), int.from_bytes(content[20:24])) == (800, 1600)


# Without a browser


class Tags(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.words = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.words.append(data.strip())


def test_what_the_page_says(audited, tmp_path):
    dataset, result = audited
    rows = [row | {"id": EVIL + row["id"], "label": row["label"] and EVIL} for row in result.rows]
    write_audit_page(tmp_path / "audit.html", replace(result, rows=rows), dataset, cards=13)
    text = (tmp_path / "audit.html").read_text()
    page = Tags(text)
    assert {"script", "link", "iframe"}.isdisjoint(tag for tag, _ in page.tags)
    said = " ".join(page.words)
    assert "13 of 20 clips have both and were scored: 6 labeled, 7 unlabeled. 7 have no teacher" in said
    assert f"truth: mismatched ({EVIL}), a {EVIL}" in said
    assert said.count("truth: ") == 12  # of train_17 nothing is known
    assert "Positives are clips whose audio is mismatched" in said
    auroc = next(row for row in result.metrics["truth"] if row["group"] == "labeled" and row["score"] == "gate")
    assert f"{auroc['auroc']:.3f}" in page.words
    policy = next(attrs["content"] for tag, attrs in page.tags if attrs.get("http-equiv") == "Content-Security-Policy")
    assert policy == "default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'"
    ranks = [int(attrs["data-rank"]) for _, attrs in page.tags if "data-rank" in attrs]
    assert ranks == list(range(1, 14))  # no clip twice, although 8 more were asked for


def test_where_nothing_is_known_nothing_is_claimed(taught, audited, tmp_path):
    dataset, result = audited
    rows = [row | {"audio": "", "audio_source": "", "true_label": ""} for row in result.rows]
    blind = replace(result, rows=rows, metrics=result.metrics | {"known_truth": {}, "truth": []})
    write_audit_page(tmp_path / "audit.html", blind, dataset, cards=1, contrast=0)
    text = (tmp_path / "audit.html").read_text()
    assert "truth" not in text.partition("<main>")[2]


class TenMinutes:
    """A clip that grows brighter, four frames a second, with audio that grows louder."""

    fps, sample_rate_hz = 4.0, 16000
    columns = {"has_video": [True], "has_audio": [True]}  # noqa: RUF012

    def frames(self, _):
        return np.broadcast_to(np.linspace(0, 255, 2400).astype(np.uint8)[:, None, None, None], (2400, 64, 96, 3))

    def audio(self, _):
        return np.linspace(0, 30000, 600 * 16000).astype(np.int16)


def test_of_a_long_clip_a_part_is_played():
    card = cards._card({"start_seconds": 0.0, "end_seconds": None}, 0, TenMinutes())
    assert card["played"] == "plays 292.5 to 307.5 of 600.0 s"
    assert sum(len(str(value)) for value in card.values()) < 500_000
    content = base64.b64decode(card["video"].partition(",")[2])
    images = [frame.to_ndarray(format="rgb24").mean() for frame in decoded(content, video=0)]
    assert len(images) == 60
    expected = np.linspace(0, 255, 2400).astype(np.uint8)[1170:1230]
    np.testing.assert_allclose(images, expected, atol=6)
    samples = sum(frame.samples for frame in decoded(content, audio=0))
    assert samples / 48000 == pytest.approx(15, abs=0.1)
    assert card["wave"]["text"] == "waveform, 600.0 s, peak -1 dBFS"
    assert [text for text, _ in card["thumbnails"]] == [f"frame {n} of 2400" for n in (401, 1201, 2001)]
    assert "plays 292.5 to" in render("audit_cards.html", cards=[card | {"row": ROW}], modalities={}, names={})


ROW = {
    "rank": 1,
    "id": "a",
    "labeled": False,
    "label": "",
    "teacher_class": None,
    "student_class": None,
    "audio": "",
    "audio_source": "",
    "true_label": "",
}


# Media


def decoded(content, **stream):
    with av.open(io.BytesIO(content)) as container:
        return list(container.decode(**stream))


def test_a_clip_comes_back_as_it_was():
    frames = np.zeros((20, 31, 47, 3), np.uint8)
    frames[:, :, :24] = (200, 40, 40)
    frames[:, :, 24:] = (30, 90, 220)
    frames[10:] = frames[10:, :, ::-1]
    audio = (12000 * np.sin(2 * np.pi * 440 * np.arange(22050 * 2) / 22050)).astype(np.int16)
    content = encode_webm(frames, 10, audio, 22050)
    assert content == encode_webm(frames, 10, audio, 22050)
    images = decoded(content, video=0)
    assert len(images) == 20
    assert [round(video.time, 3) for video in images] == [round(i / 10, 3) for i in range(20)]
    for number in (0, 9, 10, 19):
        shown = images[number].to_ndarray(format="rgb24").astype(int)
        assert shown.shape == (192, 292, 3)
        left, right = shown[96, 60], shown[96, 240]
        expected = [(200, 40, 40), (30, 90, 220)]
        for seen, color in zip((left, right), expected if number < 10 else expected[::-1], strict=True):
            assert np.abs(seen - color).max() <= 16
    heard = np.concatenate([frame.to_ndarray().reshape(-1) for frame in decoded(content, audio=0)])
    assert abs(len(heard) / 48000 - 2.0) < 0.05
    spectrum = np.abs(np.fft.rfft(heard[4800:52800]))
    assert abs(int(spectrum.argmax()) - 440) <= 1
    assert 0.3 < np.abs(heard[4800:52800]).max() < 0.45


def test_odd_sizes_rates_and_empty_clips():
    assert displayed_size(31, 47, 192) == (192, 292)
    assert displayed_size(301, 256, 192) == (300, 256)
    assert displayed_size(1, 1, 1) == (2, 2)
    assert displayed_size(1080, 1920, 192) == (416, 740)  # 640 x 480 pixels, of 9 to 16
    assert displayed_size(2, 100_000, 192) == (2, 8192)
    with av.open(io.BytesIO(encode_image(np.zeros((1080, 1920, 3), np.uint8)))) as container:
        assert (container.streams.video[0].height, container.streams.video[0].width) == (416, 740)
    frames = np.zeros((3, 8, 6, 3), np.uint8)
    assert len(decoded(encode_webm(frames, 29.97, None, 16000), video=0)) == 3
    assert decoded(encode_webm(None, None, np.zeros(100, np.int16), 16000), audio=0)
    for arguments, message in (
        ((None, 10, None, 16000), "needs frames or audio"),
        ((frames[:0], 10, np.zeros(0, np.int16), 16000), "needs frames or audio"),
        ((frames, None, None, 16000), "need a rate"),
    ):
        with pytest.raises(ValueError, match=message):
            encode_webm(*arguments)


def test_a_video_comes_back_as_it_was():
    image = np.zeros((33, 49, 3), np.uint8)
    image[:, :24], image[:, 24:] = (200, 40, 40), (30, 90, 220)
    (frame,) = decoded(encode_image(image), video=0)
    shown = frame.to_ndarray(format="rgb24").astype(int)
    assert shown.shape == image.shape
    assert np.abs(shown[16, 5] - (200, 40, 40)).max() <= 8
    assert np.abs(shown[16, 44] - (30, 90, 220)).max() <= 8
