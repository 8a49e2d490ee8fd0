"""Uploads of many shapes: each size of video has a shard of its own, and a process may have few files open."""

import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict

import numpy as np
import pytest

from avdistill.annotations import Annotation
from avdistill.dataset.clip_dataset import ClipDataset
from avdistill.dataset.schema import staging_dir
from avdistill.media import read_clip
from avdistill.preparation.prepare import PrepareConfig, prepare
from support.media_files import numbered_frames, tone, write_video

SIZES, FILES = 60, 56
RAW, JPEG = PrepareConfig(fps=10, short_side=16), PrepareConfig(fps=10, short_side=16, jpeg_quality=90)
# Ends as a kill does, after so many clips.
PROGRAM = f"""
import json, os, resource, sys
from pathlib import Path
from avdistill.annotations import Annotation
from avdistill.preparation.prepare import PrepareConfig, prepare

resource.setrlimit(resource.RLIMIT_NOFILE, ({FILES}, {FILES}))
folder, out, config, clips, last = sys.argv[1:]
clips = [Annotation(name, path, (), "train") for name, path in json.loads(clips)]
on_progress = lambda progress: os._exit(7) if progress.done == int(last) else None
prepare(clips, Path(folder), Path(out), PrepareConfig(**json.loads(config)), workers=1, on_progress=on_progress)
"""


@pytest.fixture(scope="module")
def many_sizes(tmp_path_factory):
    """Every file is two clips, the second long after the first: each shard is grown again when 59 others have been."""
    folder = tmp_path_factory.mktemp("many_sizes")
    for i in range(SIZES):
        write_video(folder / f"{i}.mp4", frames=numbered_frames(2, 16, 16 + 2 * i), waveform=tone(0.2, 440))
    return folder, [Annotation(f"{i}-{part}", f"{i}.mp4", (), "train") for part in range(2) for i in range(SIZES)]


def run(python, many_sizes, out, config, last=0):
    folder, clips = many_sizes
    listed = json.dumps([[clip.clip_id, clip.path] for clip in clips])
    command = [sys.executable, "-c", PROGRAM, folder, out, json.dumps(asdict(config)), listed, last]
    done = python.run([str(word) for word in command], text=True)
    assert done.returncode == (7 if last else 0), done.stderr


@pytest.mark.parametrize("config", [RAW, JPEG], ids=["raw", "jpeg"])
def test_more_sizes_than_files_that_may_be_open(many_sizes, tmp_path, warm_python, config):
    run(warm_python, many_sizes, tmp_path / "fresh", config)
    fresh = ClipDataset(tmp_path / "fresh")
    assert fresh.verify() == []
    assert len(list(fresh.folder.glob("frames-*.npy"))) == SIZES
    folder, clips = many_sizes
    for i, clip in enumerate(clips):
        read = read_clip(folder / clip.path, fps=10, short_side=16)
        frames = np.asarray(fresh.frames(i)).astype(int)
        assert np.abs(frames - read.frames).mean() <= (0 if config is RAW else 6)
        assert np.array_equal(fresh.audio(i), np.round(read.waveform * 32767).astype(np.int16))

    for last in (50, 90):  # in the first turn and in the second
        run(warm_python, many_sizes, tmp_path / "killed", config, last)
        with (staging_dir(tmp_path / "killed") / "frames-00003.npy").open("ab") as file:
            file.write(b"\x07" * 1234)  # bytes that nobody vouches for
    run(warm_python, many_sizes, tmp_path / "killed", config)
    assert ClipDataset(tmp_path / "killed").checksum == fresh.checksum
    assert ClipDataset(tmp_path / "killed").verify() == []


def test_it_is_the_dataset_of_a_process_with_all_files_open(many_sizes, tmp_path, monkeypatch):
    folder, clips = many_sizes
    datasets = []
    for most in (1, SIZES + 1):
        monkeypatch.setattr("avdistill.preparation.journal._MOST_OPEN_SHARDS", most)
        datasets.append(prepare(clips, folder, tmp_path / str(most), JPEG, workers=1))
    assert datasets[0].checksum == datasets[1].checksum


@pytest.mark.parametrize("config", [RAW, JPEG], ids=["raw", "jpeg"])
def test_reading_them_keeps_few_files_open(many_sizes, tmp_path, monkeypatch, config):
    folder, clips = many_sizes
    dataset = prepare(clips, folder, tmp_path / "dataset", config, workers=1)
    expected = [np.asarray(dataset.frames(i)) for i in range(len(dataset))]
    monkeypatch.setattr("avdistill.dataset.clip_dataset._MOST_MAPPED", 3)
    few, before = ClipDataset(dataset.folder), len(os.listdir("/dev/fd"))
    held = few.frames(0)
    for i, frames in enumerate(expected):
        np.testing.assert_array_equal(np.asarray(few.frames(i)), frames)
    assert len(os.listdir("/dev/fd")) <= before + 5
    np.testing.assert_array_equal(np.asarray(held), expected[0])  # whoever has one keeps it
    assert few.describe()["clips"] == len(clips)
    with ThreadPoolExecutor(4) as pool:
        for got, frames in zip(pool.map(lambda i: np.asarray(few.frames(i)), range(len(few))), expected, strict=True):
            np.testing.assert_array_equal(got, frames)
