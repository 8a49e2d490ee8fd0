"""The synthetic dataset: the same bytes from the same seed, the truth it states, audio and video in step."""

from __future__ import annotations

import csv
import hashlib
import json
import subprocess
import sys
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path

import av
import numpy as np
import pytest

from avdistill.errors import DatasetError
from avdistill.synthetic.audio import scale_to_snr
from avdistill.synthetic.generator import (
    CLASSES,
    HEADER,
    Difficulty,
    SyntheticConfig,
    plan_clip,
    render_clip,
    synthesize,
)

SMALL = SyntheticConfig(
    teacher_clips=12, labeled_clips=12, unlabeled_clips=12, test_clips=12, seconds=0.5, silent=0.3, avi_share=0.5
)
CLEAR = Difficulty(
    contrast=1.0, clutter=0.0, distractors=0, shake_pixels=0.0, brightness=0.0, occlusion=0.0, floor_db=-40.0, room=0.0
)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("synthetic")
    progress: list[tuple[int, int]] = []
    annotations = synthesize(out, SMALL, workers=1, on_progress=lambda each: progress.append((each.done, each.total)))
    assert annotations == out / "annotations.csv"
    assert progress == [(done, 48) for done in range(1, 49)]
    return out


def rows(out: Path) -> list[dict[str, str]]:
    with (out / "annotations.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def digests(out: Path) -> dict[str, str]:
    videos = out / "videos"
    files = [path for path in videos.rglob("*") if path.is_file()]
    return {path.relative_to(videos).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def decode(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    """Frames (T, H, W, 3) and samples (S,), or None when the file has no audio stream."""
    with av.open(str(path)) as container:
        frames = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    with av.open(str(path)) as container:
        if not container.streams.audio:
            return frames, None
        return frames, np.concatenate([frame.to_ndarray()[0] for frame in container.decode(audio=0)])


def find(config: SyntheticConfig, split: str, **truth: str) -> int:
    """The first clip index whose truth has these values."""
    return next(i for i in range(5000) if asdict(plan_clip(config, split, i)).items() >= truth.items())


def test_same_seed_same_bytes_in_other_processes_and_other_seed_other_bytes(made: Path, tmp_path: Path) -> None:
    fewer = replace(SMALL, unlabeled_clips=0, teacher_clips=0, test_clips=6)
    synthesize(tmp_path / "same", fewer, workers=2)
    same = digests(tmp_path / "same")
    assert len(same) == 18
    assert same.items() <= digests(made).items()  # also: a clip does not depend on how many others there are
    other = replace(fewer, seed=1)
    synthesize(tmp_path / "other", other, workers=1)
    assert not set(digests(tmp_path / "other").values()) & set(same.values())


def test_annotations_agree_with_files_counts_and_each_other(made: Path) -> None:
    table = rows(made)
    assert tuple(table[0]) == HEADER
    assert {row["path"] for row in table} == set(digests(made))  # every file is listed, nothing temporary is left
    assert len(table) == 48
    for split, clips in (("teacher", 12), ("train", 24), ("test", 12)):
        labels = Counter(row["true_label"] for row in table if row["split"] == split)
        assert labels == dict.fromkeys(CLASSES, clips // 12)
    for number, row in enumerate(table):
        own, source = f"class:{row['true_label']}", row["audio_source"]
        unlabeled = row["split"] == "train" and int(Path(row["path"]).stem) >= 12
        assert row["label"] == ("" if unlabeled else row["true_label"]), number
        assert row["start_seconds"] == row["end_seconds"] == ""
        assert (row["snr_db"] != "") == (row["audio"] == "noisy")
        if row["audio"] in ("related", "noisy"):
            assert source == own
        elif row["audio"] == "silent":
            assert source in ("no_stream", "zeros")
        else:
            assert row["audio"] == "mismatched"
            assert source in {"music", "babble"} | {f"class:{name}" for name in CLASSES} - {own}
        assert row["split"] != "teacher" or row["audio"] in ("related", "noisy")
    assert Counter(row["split"] for row in table if row["label"]) == {"teacher": 12, "train": 12, "test": 12}
    assert json.loads((made / "synthetic.json").read_text())["config"] == json.loads(json.dumps(asdict(SMALL)))


def test_shares_are_those_of_the_configuration() -> None:
    config = SyntheticConfig(noisy=0.2, mismatched=0.4, silent=0.1, avi_share=0.25)
    truths = [plan_clip(config, "train", index) for index in range(2400)]
    counts = Counter(truth.audio for truth in truths)
    expected = {"related": 0.3, "noisy": 0.2, "mismatched": 0.4, "silent": 0.1}
    assert {name: count / 2400 for name, count in counts.items()} == pytest.approx(expected, abs=0.04)  # 4 sigma
    assert np.mean([truth.path.endswith("avi") for truth in truths]) == pytest.approx(0.25, abs=0.04)
    silent = Counter(truth.audio_source for truth in truths if truth.audio == "silent")
    assert silent["zeros"] == pytest.approx(counts["silent"] / 2, rel=0.3)
    teacher = Counter(plan_clip(config, "teacher", index).audio for index in range(1200))
    assert teacher["noisy"] / 1200 == pytest.approx(0.2 / 0.5, abs=0.06)
    assert teacher.keys() == {"related", "noisy"}


def test_file_number_does_not_tell_the_class() -> None:
    labels = np.array([CLASSES.index(plan_clip(SMALL, "train", index).true_label) for index in range(1200)])
    same_place = labels.reshape(100, 12)
    assert (
        max(Counter(column).most_common(1)[0][1] for column in same_place.T.tolist()) < 30
    )  # 8 by chance, 100 if the order revealed it


def test_snr_of_noisy_clips_is_the_stated_one_and_parts_sum_to_the_whole() -> None:
    for name in CLASSES:
        clip = render_clip(SMALL, "test", find(SMALL, "test", audio="noisy", true_label=name))
        own, other = clip.foreground.astype(float), clip.background.astype(float)
        assert clip.truth.snr_db is not None
        assert -3 <= clip.truth.snr_db <= 9
        assert 10 * np.log10((own**2).mean() / (other**2).mean()) == pytest.approx(clip.truth.snr_db, abs=1e-3)
        floor = clip.waveform - own - other
        level_db = 10 * np.log10((floor**2).mean() / ((own + other) ** 2).mean())
        assert level_db == pytest.approx(SMALL.difficulty.floor_db, abs=4.01)
        assert np.abs(clip.waveform).max() <= 1


def test_unrelated_clips_hold_nothing_of_their_own_thing() -> None:
    clip = render_clip(SMALL, "test", find(SMALL, "test", audio="mismatched"))
    assert not clip.foreground.any()
    assert clip.background.std() > 0


def test_files_open_as_stated(made: Path) -> None:
    """Container, codecs, lengths, silence: what the annotation says is what a decoder finds."""
    seen = set()
    for row in rows(made):
        path = made / "videos" / row["path"]
        frames, samples = decode(path)
        assert frames.shape == (8, 72, 96, 3)
        seen.add((path.suffix, row["audio_source"].split(":")[0]))
        with av.open(str(path)) as container:
            codecs = [stream.codec_context.name for stream in container.streams]
        video, audio = {".mp4": ("h264", "aac"), ".avi": ("mpeg4", "mp3float")}[path.suffix]
        assert codecs == ([video] if samples is None else [video, audio])
        assert (samples is None) == (row["audio_source"] == "no_stream")
        if samples is not None:
            assert len(samples) == pytest.approx(8000, abs=2500)  # encoders pad to whole frames
            assert samples.any() == (row["audio"] != "silent")
    assert seen >= {(suffix, source) for suffix in (".mp4", ".avi") for source in ("no_stream", "zeros", "class")}


def test_encoding_keeps_video_and_audio(tmp_path: Path) -> None:
    config = replace(SMALL, teacher_clips=6, labeled_clips=0, unlabeled_clips=0, test_clips=0, seconds=1.0)
    synthesize(tmp_path, config, workers=1)
    for index in range(6):
        clip = render_clip(config, "teacher", index)
        frames, samples = decode(tmp_path / "videos" / clip.truth.path)
        assert np.abs(frames.astype(float) - clip.frames).mean() < 16
        assert samples is not None
        spectra = [np.abs(np.fft.rfft(wave, 32000)) for wave in (samples, clip.waveform)]
        assert np.corrcoef(*spectra)[0, 1] > 0.9


def test_ball_is_lowest_when_it_thuds() -> None:
    """The video's and the audio's events are measured in pixels and samples, and compared with the stated times."""
    config = replace(SMALL, seconds=3.0, fps=40, difficulty=CLEAR, noisy=0.0, mismatched=0.0, silent=0.0)
    thuds = 0
    for seed in range(4):
        varied = replace(config, seed=seed)
        clip = render_clip(varied, "test", find(varied, "test", audio="related", true_label="bouncing_ball"))
        still = np.median(clip.frames, axis=0)
        moving = np.abs(clip.frames - still).sum(axis=3) > 60  # (T, H, W): the ball, not the wall nor the ground
        height = np.array([np.nonzero(mask)[0].mean() if mask.any() else np.nan for mask in moving])
        energy = np.convolve(clip.waveform.astype(float) ** 2, np.ones(80), "full")[: len(clip.waveform)]
        for event in clip.event_seconds[(clip.event_seconds > 0.25) & (clip.event_seconds < 2.75)]:
            frame, sample = round(event * 40), round(event * 16000)
            near = np.arange(frame - 6, frame + 7)  # 0.15 s to either side
            lowest = near[np.nanargmax(height[near])] / 40
            assert lowest == pytest.approx(event, abs=0.06)
            assert energy[sample + 80 : sample + 560].max() > 4 * energy[sample - 480 : sample].max()
            thuds += 1
    assert thuds >= 8


def test_audio_knobs_leave_the_video_and_video_knobs_the_audio() -> None:
    index = find(SMALL, "test", audio="noisy")
    clip = render_clip(SMALL, "test", index)
    noisier = render_clip(replace(SMALL, difficulty=Difficulty(floor_db=0.0, room=1.0)), "test", index)
    plainer = render_clip(replace(SMALL, difficulty=Difficulty(clutter=0.0, distractors=0)), "test", index)
    assert np.array_equal(clip.frames, noisier.frames)
    assert not np.array_equal(clip.waveform, noisier.waveform)
    assert np.array_equal(clip.waveform, plainer.waveform)
    assert not np.array_equal(clip.frames, plainer.frames)


def test_resuming_keeps_finished_files_and_makes_missing_ones(tmp_path: Path) -> None:
    config = replace(SMALL, teacher_clips=0, labeled_clips=4, unlabeled_clips=2, test_clips=0)
    annotations = synthesize(tmp_path, config, workers=1)
    before, text = digests(tmp_path), annotations.read_text()
    files = sorted((tmp_path / "videos" / "train").iterdir())
    times = {path.name: path.stat().st_mtime_ns for path in files}
    killed = files[3]
    killed.rename(killed.with_name(killed.name + ".tmp"))  # what a kill in the middle of a clip leaves behind
    annotations.unlink()
    progress: list[tuple[int, int]] = []
    synthesize(tmp_path, config, workers=1, on_progress=lambda each: progress.append((each.done, each.total)))
    assert progress == [(6, 6)]
    assert digests(tmp_path) == before
    assert annotations.read_text() == text
    kept = {path.name: path.stat().st_mtime_ns for path in files if path != killed}
    assert kept.items() <= times.items()


def test_another_configuration_in_the_folder_is_refused(tmp_path: Path) -> None:
    config = replace(SMALL, teacher_clips=0, labeled_clips=1, unlabeled_clips=0, test_clips=0)
    synthesize(tmp_path, config, workers=1)
    before = digests(tmp_path)
    changed = replace(config, seed=7, difficulty=Difficulty(contrast=0.9))
    with pytest.raises(DatasetError, match=r"difficulty\.contrast is 0\.8, requested 0\.9; seed is 0, requested 7"):
        synthesize(tmp_path, changed, workers=1)
    assert digests(tmp_path) == before


@pytest.mark.parametrize(
    ("change", "message"),
    [({"noisy": 0.9}, "sum to at most 1"), ({"mismatched": 0.6}, "teacher_clips"), ({"width": 95}, "even")],
)
def test_impossible_configurations_are_refused(change: dict[str, float], message: str) -> None:
    base = {"noisy": 0.0, "mismatched": 0.4, "silent": 0.4}
    with pytest.raises(ValueError, match=message):
        SyntheticConfig(**(base | change))  # type: ignore[arg-type]


def test_scale_to_snr_leaves_silence_alone() -> None:
    foreground, background = np.random.default_rng(0).normal(size=(2, 1000))
    scaled = scale_to_snr(foreground, background, 7.0)
    assert 10 * np.log10(np.mean(foreground**2) / np.mean(scaled**2)) == pytest.approx(7.0)
    assert not scale_to_snr(foreground, np.zeros(1000), 7.0).any()
    assert not scale_to_snr(np.zeros(1000), background, 7.0).any()


def test_workers_start_without_torch() -> None:
    check = "import sys, avdistill.synthetic.generator; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0
