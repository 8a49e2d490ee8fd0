"""Near-duplicates: uploads scaled, encoded again, cut elsewhere or put to other video, and what is none."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from avdistill.analysis.audit.flags import flag_clips
from avdistill.annotations import read_annotations
from avdistill.cli import main
from avdistill.preparation.duplicates import correlations, find_duplicates
from avdistill.preparation.prepare import PrepareConfig, prepare
from support.media_files import write_video

RATE = 16000


def moving(seed, seconds=3.0, size=(48, 64)):
    """A bright square on its own path over a fixed background."""
    rng = np.random.default_rng(seed)
    frames = np.repeat(rng.integers(60, 90, (1, *size, 3)), int(10 * seconds), 0).astype(np.uint8)
    (fx, px), (fy, py) = rng.uniform(0.2, 0.9, (2, 2)) * (1, 6)
    h, w = size[0] - 12, size[1] - 12
    for t, frame in enumerate(frames):
        x, y = int(w * (0.5 + 0.5 * math.sin(fx * t + px))), int(h * (0.5 + 0.5 * math.sin(fy * t + py)))
        frame[y : y + 12, x : x + 12] = 240
    return frames


def beats(seed, seconds=3.0):
    """Tones of random pitch, level and length one after the other."""
    rng = np.random.default_rng(seed)
    parts = []
    while sum(map(len, parts)) < seconds * RATE:
        t = np.arange(int(rng.uniform(0.1, 0.3) * RATE)) / RATE
        parts.append(rng.uniform(0.05, 0.4) * np.sin(2 * np.pi * rng.uniform(150, 4000) * t))
    return np.concatenate(parts)[: int(seconds * RATE)]


@pytest.fixture(scope="module")
def uploads(tmp_path_factory):
    """An upload in four forms, five others, and two that are silent and still."""
    folder = tmp_path_factory.mktemp("uploads")
    rng = np.random.default_rng(0)
    louder = np.clip(1.8 * beats(0)[4000:] + 0.003 * rng.standard_normal(44000), -1, 1)
    brighter = np.clip(moving(0)[5:].astype(int) * 9 // 10 + 20, 0, 255).astype(np.uint8)
    cases = {
        "original": (moving(0), beats(0), "train"),
        "smaller": (moving(0)[:, ::2, ::2], beats(0), "test"),
        "cut_elsewhere": (brighter, louder, "train"),
        "other_video": (moving(7), beats(0), "train"),
        **{f"other{i}": (moving(i), beats(i), "train") for i in range(1, 6)},
        "silent": (np.repeat(moving(9)[:1], 30, 0), np.zeros(48000), "train"),
        "silent_too": (np.repeat(moving(9)[:1], 30, 0), np.zeros(48000), "test"),
    }
    lines = ["path,label,split,group"]
    for name, (frames, waveform, split) in cases.items():
        write_video(folder / f"{name}.mp4", frames=frames, waveform=waveform)
        lines.append(f"{name}.mp4,,{split},")
    (folder / "list.csv").write_text("\n".join(lines))
    config = PrepareConfig(fps=10, short_side=24)
    return prepare(read_annotations(folder / "list.csv"), folder, folder / "dataset", config, workers=1)


def test_re_uploads_are_found_and_nothing_else(uploads):
    ids = uploads.columns["id"].tolist()
    found = {frozenset(ids[clip] for clip in pair.clips): (pair.audio, pair.video) for pair in find_duplicates(uploads)}
    assert found == {
        frozenset({"original", "smaller"}): (True, True),
        frozenset({"original", "cut_elsewhere"}): (True, True),
        frozenset({"smaller", "cut_elsewhere"}): (True, True),
        frozenset({"original", "other_video"}): (True, False),
        frozenset({"smaller", "other_video"}): (True, False),
        frozenset({"cut_elsewhere", "other_video"}): (True, False),
    }
    across = [len({uploads.columns["split"][clip] for clip in pair.clips}) == 2 for pair in find_duplicates(uploads)]
    assert across == [True] * 3 + [False] * 3


def test_clips_of_one_group_are_no_duplicates_and_groups_of_two_splits_are_counted(uploads, tmp_path, capsys):
    videos = uploads.folder.parent
    text = (videos / "list.csv").read_text()
    for name in ("original", "smaller", "cut_elsewhere", "other_video"):
        text = "\n".join(f"{line}one" if line.startswith(name) else line for line in text.splitlines())
    (tmp_path / "list.csv").write_text(text)
    config = PrepareConfig(fps=10, short_side=24)
    grouped = prepare(read_annotations(tmp_path / "list.csv"), videos, tmp_path / "dataset", config, workers=1)
    assert grouped.columns["group"].tolist()[:4] == ["one"] * 4
    assert grouped.columns["group"].tolist()[4] == "other1.mp4"
    assert find_duplicates(grouped) == []
    assert main(["info", str(grouped.folder), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["groups"], report["groups_across_splits"], report["duplicates"]["pairs"]) == (8, 1, 0)


def test_info_lists_those_across_splits_first(uploads, capsys):
    assert main(["info", str(uploads.folder)]) == 0
    lines = capsys.readouterr().out.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("duplicates"))
    assert "6 pairs of clips of different source videos, 3 of them across splits" in lines[start]
    assert lines[start + 1] == "  original (train), smaller (test): same audio and video"
    assert [("(test)" in line) for line in lines[start + 1 : start + 7]] == [True] * 3 + [False] * 3


def test_an_audit_flags_them(uploads):
    clips = np.arange(len(uploads))
    found = dict(zip(uploads.columns["id"].tolist(), flag_clips(uploads, clips).of_clip, strict=True))
    assert found["original"] == ("reupload", "shared_audio")
    assert found["other_video"] == ("shared_audio",)
    assert found["other1"] == ()
    assert found["silent"] == ("silent", "still_video")


@pytest.mark.parametrize(("lengths", "fewest"), [((9, 9), 4), ((12, 5), 3), ((4, 20), 4)])
def test_the_correlations_are_those_of_the_loop(lengths, fewest):
    rng = np.random.default_rng(sum(lengths))
    a, b = (rng.standard_normal((n, 3)) for n in lengths)
    expected = []
    for shift in range(-30, 30):
        times = [t for t in range(lengths[0]) if 0 <= t - shift < lengths[1]]
        if len(times) >= max(fewest, min(lengths) / 2):
            x, y = a[times], b[[t - shift for t in times]]
            changes = float(np.corrcoef((x - x.mean(0)).ravel(), (y - y.mean(0)).ravel())[0, 1])
            expected.append((changes, float((x * y).sum() / math.sqrt((x**2).sum() * (y**2).sum()))))
    np.testing.assert_allclose(np.stack(correlations(a, b, fewest), 1), expected, atol=1e-12)


def test_a_part_that_hardly_changes_is_no_evidence():
    """Both change in their last four rows only: shifted by four or more, one of them shows none of these."""
    rng = np.random.default_rng(0)
    a, b = (np.concatenate([np.ones((20, 3)), rng.standard_normal((4, 3))]) for _ in "ab")
    changes, whole = correlations(a, b, 4)
    np.testing.assert_array_equal(changes == -1, np.abs(np.arange(-12, 13)) >= 4)
    np.testing.assert_array_equal(whole == -1, changes == -1)
