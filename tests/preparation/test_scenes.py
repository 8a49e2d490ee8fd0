"""`prepare --scenes`: cuts of generated videos at times that are known, clips per shot, resumption, refusals."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("scenedetect", reason="the extra scenes is not installed")

from avdistill.annotations import Annotation
from avdistill.cli import main
from avdistill.dataset.clip_dataset import ClipDataset
from avdistill.errors import ConfigError, DatasetError
from avdistill.media import read_clip
from avdistill.preparation import scenes
from avdistill.preparation.scenes import cut_at_scenes, find_shots
from support.media_files import write_video

FPS = 10
# Frames per shot; the third is shorter than two seconds.
SHOTS = (30, 25, 12, 40)
CUTS = (3.0, 5.5, 6.7)


def shot(seed, count, height=48, width=64):
    """A texture that moves by two pixels a frame, as a pan of a camera does, with some noise."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (height // 8, 3 * width // 8, 3)).repeat(8, 0).repeat(8, 1)
    frames = np.stack([coarse[:, 2 * t : 2 * t + width] for t in range(count)])
    return np.clip(frames + rng.normal(0, 3, frames.shape), 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """An upload of four shots with audio, a video of one shot, and a file that is none."""
    folder = tmp_path_factory.mktemp("scenes")
    rng = np.random.default_rng(0)
    frames = np.concatenate([shot(i, count) for i, count in enumerate(SHOTS)])
    waveform = 0.2 * rng.standard_normal(16000 * len(frames) // FPS)
    write_video(folder / "upload.mp4", frames=frames, fps=FPS, waveform=waveform)
    write_video(folder / "one.mp4", frames=shot(9, 40), fps=FPS)
    (folder / "broken.mp4").write_bytes(bytes(500))
    return folder


@pytest.fixture(scope="module")
def recorded(videos, tmp_path_factory):
    """The record of a call on the two videos."""
    record = tmp_path_factory.mktemp("record") / "found.jsonl"
    cut_at_scenes(whole("upload", "one"), videos, record, workers=1)
    return record


@pytest.fixture
def record(recorded, tmp_path):
    """A copy of it, to write into."""
    return Path(shutil.copy(recorded, tmp_path / "found.jsonl"))


def whole(*names):
    return [Annotation(name, f"{name}.mp4", ("bell",), "train") for name in names]


def test_the_cuts_are_where_the_shots_begin(videos):
    found = find_shots(videos, "upload.mp4")
    assert found.cuts == pytest.approx(CUTS, abs=1e-6)
    assert found.end == pytest.approx((sum(SHOTS) - 1) / FPS)
    assert find_shots(videos, "one.mp4").cuts == ()
    assert "broken.mp4" in str(find_shots(videos, "broken.mp4"))


def test_repeated_frames_are_no_cuts(tmp_path):
    """Ten frames per second, stored as thirty: each pan jumps at every third frame."""
    frames = np.concatenate([shot(i, count) for i, count in enumerate(SHOTS)])
    write_video(tmp_path / "repeated.mp4", frames=frames.repeat(3, axis=0), fps=3 * FPS)
    assert find_shots(tmp_path, "repeated.mp4").cuts == pytest.approx(CUTS, abs=1e-6)


def test_the_slides_of_a_slide_show_are_shots(tmp_path):
    frames = np.concatenate([shot(i, 1).repeat(25, axis=0) for i in range(3)])
    write_video(tmp_path / "slides.mp4", frames=frames, fps=FPS)
    assert find_shots(tmp_path, "slides.mp4").cuts == pytest.approx((2.5, 5.0), abs=1e-6)


def test_visited_frames_are_those_that_are_kept_otherwise(videos):
    seen = []
    visited = read_clip(videos / "upload.mp4", fps=None, short_side=24, visit=lambda frame: seen.append(frame.copy()))
    kept = read_clip(videos / "upload.mp4", fps=None, short_side=24)
    assert np.array_equal(np.stack(seen), kept.frames)
    assert np.array_equal(visited.frame_times_seconds, kept.frame_times_seconds)
    assert visited.frames.shape == (0, *kept.frames.shape[1:])


def test_a_whole_file_becomes_a_clip_per_shot_and_segments_stay(videos, tmp_path):
    segment = Annotation("part", "upload.mp4", (), "train", 1.0, 8.0)
    grouped = Annotation("again", "upload.mp4", ("dog",), "train", group="source")
    listed = [*whole("upload", "one", "broken"), segment, grouped]
    cut = cut_at_scenes(listed, videos, tmp_path / "found.jsonl", scene_seconds=1.0, workers=1)
    bounds = [(0.0, 3.0), (3.0, 5.5), (5.5, 6.7), (6.7, None)]
    parts, others = cut[:4], cut[4:7]
    assert [(each.start_seconds, each.end_seconds) for each in parts] == [pytest.approx(pair) for pair in bounds]
    assert [each.clip_id for each in parts] == [
        "upload@0.000-3.000", "upload@3.000-5.500", "upload@5.500-6.700", "upload@6.700-end"
    ]  # fmt: skip
    assert {(each.path, each.labels, each.split) for each in parts} == {("upload.mp4", ("bell",), "train")}
    assert others == [*whole("one", "broken"), segment]
    assert {(each.group, each.labels) for each in cut[7:]} == {("source", ("dog",))}
    assert len(cut) == 11


@pytest.mark.parametrize(
    ("scene_seconds", "expected"), [(1.0, CUTS), (2.0, (3.0, 5.5)), (3.0, (3.0, 6.7)), (4.5, (5.5,)), (9.0, ())]
)
def test_a_short_shot_stays_with_the_next(videos, record, scene_seconds, expected):
    """The shots are of 3, 2.5, 1.2 and 4 s, the last frame is at 10.6 s."""
    cut = cut_at_scenes(whole("upload"), videos, record, scene_seconds=scene_seconds)
    assert [each.start_seconds for each in cut[1:]] == pytest.approx(list(expected))


def test_what_was_found_is_found_again_without_decoding(videos, record, monkeypatch):
    first = cut_at_scenes(whole("upload", "one"), videos, record)
    lines = record.read_text().splitlines()
    assert [json.loads(line)["path"] for line in lines] == ["upload.mp4", "one.mp4"]
    asked = []

    def answers(function, items, **_):
        asked.extend(items)
        return map(function, items)

    monkeypatch.setattr(scenes, "ordered_map", answers)
    assert cut_at_scenes(whole("upload", "one"), videos, record) == first
    assert asked == []
    record.write_text(lines[0] + "\n" + lines[1][:20])  # a kill while the second was written
    assert cut_at_scenes(whole("upload", "one"), videos, record) == first
    assert asked == ["one.mp4"]
    assert record.read_text().splitlines() == lines
    changed = json.loads(lines[1]) | {"state": [1, 2]}  # of a file that was replaced since
    record.write_text(lines[0] + "\n" + json.dumps(changed) + "\n")
    cut_at_scenes(whole("upload", "one"), videos, record)
    assert asked == ["one.mp4"] * 2
    record.write_text("[]\n" + lines[0] + "\n")
    with pytest.raises(DatasetError, match="line 1: not the shots of a file"):
        cut_at_scenes(whole("upload"), videos, record)


def test_prepare_cuts_an_upload_into_clips_of_one_group(videos, record, tmp_path, capsys):
    shutil.copy(record, tmp_path / "out.scenes.jsonl")
    (tmp_path / "list.csv").write_text("path,label,split\nupload.mp4,bell,train\none.mp4,dog,train\n")
    words = ["prepare", str(tmp_path / "list.csv"), "--videos", str(videos), "--out", str(tmp_path / "out"), "--scenes",
             "--workers", "1", "--short-side", "24", "--fps", "10"]  # fmt: skip
    assert main(words) == 0
    dataset = ClipDataset(tmp_path / "out")
    assert dataset.columns["id"].tolist() == ["upload@0.000-3.000", "upload@3.000-5.500", "upload@5.500-end", "one"]
    assert dataset.columns["group"].tolist() == ["upload.mp4"] * 3 + ["one.mp4"]
    assert dataset.columns["frame_count"].tolist() == [30, 25, 52, 40]
    assert dataset.columns["audio_count"][:2] == pytest.approx([48000, 40000], abs=200)
    # No frame of a neighboring shot: each is nearest to the texture of its own.
    for clip, seed in ((0, 0), (1, 1)):
        stored = np.asarray(dataset.frames(clip)).astype(float)
        own = [shot(s, SHOTS[clip])[:, ::2, ::2].astype(float) for s in (seed, 1 - seed)]
        for t in (0, -1):
            assert np.abs(stored[t] - own[0][t]).mean() < np.abs(stored[t] - own[1][t]).mean()
    before = os.stat(tmp_path / "out" / "dataset.json").st_mtime_ns
    assert main(words) == 0  # the finished dataset is recognized
    assert os.stat(tmp_path / "out" / "dataset.json").st_mtime_ns == before
    capsys.readouterr()
    assert main([*words[:5], str(tmp_path / "new"), "--scenes", "--scene-seconds", "0"]) == 2
    assert "scene_seconds: expected above 0, found 0" in capsys.readouterr().err
    assert main([*words, "--part", "1/2"]) == 2
    assert "--scenes: expected without --part" in capsys.readouterr().err


def test_without_the_package_it_says_what_to_install(videos, tmp_path, monkeypatch):
    monkeypatch.setattr(scenes, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=r"pip install 'avdistill\[scenes\]'"):
        cut_at_scenes(whole("upload"), videos, tmp_path / "found.jsonl")
