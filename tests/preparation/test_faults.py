"""What a file may do to its reader: every clip is in the dataset or in the list of what was skipped, with the
reason.
"""

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest

from avdistill.annotations import Annotation
from avdistill.dataset.schema import staging_dir
from avdistill.errors import ConfigError, DatasetError, EmptySegmentError, MediaError, SpoolError
from avdistill.media import audio_stream, read_clip, scaler
from avdistill.preparation import clip_reader
from avdistill.preparation.prepare import PrepareConfig, prepare
from support.faulty_readers import read_nonsense, read_or_fail
from support.media_files import numbered_frames, tone, write_timed, write_video

CONFIG = PrepareConfig(fps=10, short_side=32)


def skipped(dataset):
    with (dataset / "skipped.csv").open(newline="", encoding="utf-8") as file:
        return {row["clip"]: row["reason"] for row in csv.DictReader(file)}


@pytest.mark.parametrize("workers", [1, 2])
def test_a_reader_that_fails_in_any_way_costs_its_clip(small_set, tmp_path, workers):
    folder, annotations = small_set
    faults = ["crashes", "hangs", "exits", "grows", "refuses"]
    clips = [Annotation(fault, annotations[0].path, (), "train") for fault in faults]
    for i, annotation in enumerate(annotations[:8]):
        clips.insert(2 * i, annotation)
    dataset = prepare(
        clips, folder, tmp_path / "dataset", CONFIG, read=read_or_fail, workers=workers, time_limit_seconds=1.5
    )
    assert dataset.columns["id"].tolist() == [a.clip_id for a in annotations[:8]]
    for i, annotation in enumerate(annotations[:8]):
        assert (dataset.frames(i) == read_clip(folder / annotation.path, fps=10, short_side=32).frames).all()
    file, reasons = folder / annotations[0].path, skipped(tmp_path / "dataset")
    assert reasons.pop("hangs") == f"{file}: took longer than 1.5 s"
    assert reasons.pop("crashes") == f"{file}: the worker process was ended by SIGSEGV"
    assert reasons.pop("exits") == f"{file}: the worker process ended with exit code 0"
    assert reasons.pop("grows").startswith(f"{file}: too large for memory")
    assert reasons.pop("refuses") == f"{file}: Permission denied"
    assert not reasons
    assert not list((tmp_path / "dataset").glob("spool-*"))


def test_strict_stops_at_such_a_clip_and_leaves_no_spool(small_set, tmp_path):
    folder, annotations = small_set
    for fault, message in (("hangs", "longer than 1 s"), ("crashes", "SIGSEGV"), ("refuses", "Permission denied")):
        clips = [annotations[0], Annotation(fault, annotations[1].path, (), "train"), *annotations[2:6]]
        out = tmp_path / fault
        with pytest.raises(MediaError, match=message):
            prepare(clips, folder, out, CONFIG, read=read_or_fail, strict=True, time_limit_seconds=1)
        assert not list(staging_dir(out).glob("spool-*"))
    with pytest.raises(ConfigError, match="time_limit_seconds"):
        prepare(clips, folder, out, CONFIG, time_limit_seconds=0)


def test_workers_import_only_what_reading_needs():
    program = (
        "import sys, avdistill.preparation.clip_reader; print([m for m in ('torch', 'pyarrow') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_a_mistake_in_a_reader_is_raised(small_set, tmp_path, monkeypatch):
    folder, annotations = small_set
    with pytest.raises(KeyError, match=r"train_\d"):
        prepare(annotations, folder, tmp_path / "dataset", CONFIG, read=read_nonsense)
    monkeypatch.setattr(read_nonsense, "__module__", "__main__")
    with pytest.raises(ConfigError, match="read_nonsense"):
        prepare(annotations, folder, tmp_path / "script", CONFIG, read=read_nonsense)
    assert not staging_dir(tmp_path / "script").exists()


def test_readers_are_part_of_the_settings_unless_they_are_the_usual_one(prepared, small_set, tmp_path):
    folder, annotations = small_set
    assert "reader" not in json.loads((prepared / "dataset.json").read_text())["settings"]
    prepare(annotations[:2], folder, tmp_path / "dataset", CONFIG, read=read_or_fail)
    with pytest.raises(DatasetError, match="other settings"):
        prepare(annotations[:2], folder, tmp_path / "dataset", CONFIG)


def test_a_clip_larger_than_a_workers_memory(tmp_path):
    write_video(tmp_path / "clip.mp4", frames=numbered_frames(40), waveform=tone(4.0, 440))
    clips = [Annotation("clip", "clip.mp4", (), "train")]
    config = PrepareConfig(fps=100, short_side=None, size=(384, 512))  # 400 frames of 0.6 MB
    dataset = prepare(clips, tmp_path, tmp_path / "dataset", config, memory_limit_bytes=120 * 2**20)
    assert dataset.frames(0).nbytes > 200 * 2**20
    direct = read_clip(tmp_path / "clip.mp4", fps=10, size=(384, 512))
    assert (dataset.frames(0)[::10] == direct.frames).all()
    if sys.platform == "linux":  # elsewhere the system does not enforce the limit; this reader keeps frames in memory
        with pytest.raises(DatasetError, match="too large for memory"):
            prepare(clips, tmp_path, tmp_path / "b", config, read=read_or_fail, memory_limit_bytes=120 * 2**20)


def test_spooled_frames_are_the_frames(tmp_path):
    path = write_video(tmp_path / "clip.mp4", frames=numbered_frames(40), waveform=tone(4.0, 440))
    plain = read_clip(path, fps=7, start_seconds=0.5)
    spooled = read_clip(path, fps=7, start_seconds=0.5, spool=tmp_path / "spool")
    assert isinstance(spooled.frames, np.memmap)
    assert not spooled.frames.flags.writeable
    assert (spooled.frames == plain.frames).all()
    assert (spooled.waveform == plain.waveform).all()
    assert (spooled.frame_times_seconds == plain.frame_times_seconds).all()
    with pytest.raises(EmptySegmentError):
        read_clip(path, fps=7, start_seconds=60, spool=tmp_path / "none")
    with pytest.raises(MediaError, match="beyond the video"):
        read_clip(path, region=(60, 0, 48, 24), spool=tmp_path / "none")
    assert not (tmp_path / "none").exists()
    with pytest.raises(SpoolError, match="No such file or directory"):
        read_clip(path, spool=tmp_path / "nowhere" / "spool")


def test_claims_beyond_any_camera(tmp_path, monkeypatch):
    path = write_video(tmp_path / "clip.mp4", frames=numbered_frames(40), waveform=tone(4.0, 440))
    with pytest.raises(MediaError, match="a frame of 262144x196608 pixels"):
        read_clip(path, short_side=3 * 2**16)
    with pytest.raises(EmptySegmentError):
        read_clip(path, start_seconds=1e30)
    with pytest.raises(MediaError, match=r"more than 9\.5[0-9]*e-05 GiB of 64x48 frames; give segments"):
        read_clip(path, limit_bytes=102400)
    monkeypatch.setattr(audio_stream, "_LONGEST_SECONDS", 3)
    with pytest.raises(MediaError, match="audio; give segments"):
        read_clip(path)
    monkeypatch.undo()
    monkeypatch.setattr(scaler, "LARGEST_FRAME_PIXELS", 3000)
    with pytest.raises(MediaError, match="a frame of 64x48 pixels"):
        read_clip(path)


def test_one_clip_cannot_fill_the_disk(tmp_path):
    """A few kilobytes that claim megabytes a frame, or hours: those files are skipped, the others are prepared."""
    write_video(tmp_path / "strip.mkv", frames=numbered_frames(3, 2, 8192), codecs=("ffv1", ""))
    write_timed(tmp_path / "slides.mkv", [0, 3000])
    write_video(tmp_path / "good.mp4", frames=numbered_frames(10))
    assert max(file.stat().st_size for file in tmp_path.iterdir()) < 41_000
    clips = [Annotation(name, name, (), "train") for name in ("strip.mkv", "slides.mkv", "good.mp4")]
    limit = 2**20  # 340 frames of 32 x 43 pixels
    dataset = prepare(clips, tmp_path, tmp_path / "dataset", PrepareConfig(short_side=24), clip_limit_bytes=limit)
    assert dataset.columns["id"].tolist() == ["good.mp4"]
    reasons = skipped(tmp_path / "dataset")
    assert "strip.mkv: expected a frame at most 16 times as long as wide, found 8192x2" in reasons["strip.mkv"]
    assert "slides.mkv: more than 0.000976562 GiB of 32x24 frames; give segments" in reasons["slides.mkv"]
    sizes = [file.stat().st_size for file in (tmp_path / "dataset").iterdir()]
    assert sum(sizes) < limit
    with pytest.raises(
        DatasetError, match=r"were too large then and may be larger now: slides\.mkv; give the clip limit"
    ):
        prepare(clips, tmp_path, tmp_path / "dataset", PrepareConfig(short_side=24))
    again = prepare(clips, tmp_path, tmp_path / "dataset", PrepareConfig(short_side=24), clip_limit_bytes=limit)
    assert again.checksum == dataset.checksum


def test_a_strip_of_a_given_size_is_read(tmp_path):
    path = write_video(tmp_path / "strip.mkv", frames=numbered_frames(3, 2, 2048), codecs=("ffv1", ""))
    assert read_clip(path, size=(24, 32)).frames.shape[1:] == (24, 32, 3)
    assert read_clip(path).frames.shape[1:] == (2, 2048, 3)
    assert read_clip(path, region=(0, 0, 1024, 2), short_side=4).frames.shape[1:] == (4, 2048, 3)


def mutations(data, rng):
    """Ten ways in which disks and networks damage a file."""
    size = len(data)
    for count in (1, 20, 200):
        flipped = bytearray(data)
        for place in rng.integers(0, size, count):
            flipped[place] ^= 1 << rng.integers(8)
        yield flipped
    for share in (0.02, 0.5, 0.95):
        yield data[: int(size * share)]
    place, length = int(rng.integers(size // 4, size // 2)), size // 8
    yield data[:place] + bytes(length) + data[place + length :]
    yield data[:place] + data[place : place + length] + data[place:]
    yield rng.bytes(64) + data[64:]
    header = bytearray(data)
    for place in rng.integers(0, min(size, 800), 12):
        header[place] = rng.integers(256)
    yield header


def test_damaged_copies_are_read_or_skipped(tmp_path):
    rng = np.random.default_rng(5)
    noise = rng.integers(0, 255, (20, 48, 64, 3)).astype(np.uint8)
    clips = []
    for suffix, codecs in (("mp4", ("libx264", "aac")), ("avi", ("mpeg4", "mp3")), ("mkv", ("mpeg4", "aac"))):
        path = write_video(tmp_path / f"whole.{suffix}", frames=noise, waveform=tone(2.0, 440), codecs=codecs)
        for i, data in enumerate(mutations(path.read_bytes(), rng)):
            name = f"{suffix}_{i}.{suffix}"
            (tmp_path / name).write_bytes(data)
            clips.append(Annotation(name, name, (), "train"))
    dataset = prepare(clips, tmp_path, tmp_path / "dataset", CONFIG, time_limit_seconds=30)
    reasons = skipped(tmp_path / "dataset")
    assert {*dataset.columns["id"], *reasons} == {a.clip_id for a in clips}
    assert len(dataset) + len(reasons) == len(clips)
    assert len(dataset) >= 10
    assert len(reasons) >= 3
    for name, reason in reasons.items():
        assert reason.startswith(f"{tmp_path / name}: ")
        assert "worker process" not in reason


def test_names_that_tools_trip_over(tmp_path, monkeypatch):
    names = [
        "-rf",
        "sp ace",
        "日本 ü\u0301",
        "12:30",
        "concat:a|b",
        "pipe:0",
        "new\nline",
        "%03d",
        '"quoted"',
        "$(x)`;#?*",
    ]
    monkeypatch.chdir(tmp_path)
    source = write_video(tmp_path / "source.mp4", frames=numbered_frames(5))
    for name in names:
        shutil.copy(source, f"./{name}.mp4")
    Path("broken\nfile.mp4").write_bytes(b"x" * 100)
    clips = [Annotation(name, f"{name}.mp4", (), "train") for name in [*names, "broken\nfile"]]
    dataset = prepare(clips, Path("."), Path("dataset"), CONFIG)
    assert dataset.columns["id"].tolist() == names
    assert dataset.columns["path"].tolist() == [f"{name}.mp4" for name in names]
    assert all((dataset.frames(i) == dataset.frames(0)).all() for i in range(len(names)))
    (reason,) = skipped(Path("dataset")).values()
    assert reason.startswith("broken file.mp4: ")
    assert "Invalid data" in reason
    assert len(prepare(clips, Path("."), Path("dataset"), CONFIG)) == len(names)  # sources.csv keeps such names


def shifted(path, frames, waveform, *, video_seconds, audio_seconds):
    """Matroska keeps when each track sets in."""
    whole = write_video(path.with_suffix(".whole.mkv"), frames=frames, waveform=waveform)
    with av.open(str(whole)) as source, av.open(str(path), "w") as target:
        streams = {stream.index: target.add_stream_from_template(stream) for stream in source.streams}
        for packet in source.demux():
            if packet.dts is not None:
                late = video_seconds if packet.stream.type == "video" else audio_seconds
                packet.pts += round(late / packet.time_base)
                packet.dts += round(late / packet.time_base)
                packet.stream = streams[packet.stream.index]
                target.mux(packet)
    return path


@pytest.mark.parametrize(
    ("video_seconds", "audio_seconds", "audio_length", "expected"),
    [
        (0.0, 0.0, 3.5, 3.5),  # the audio outlasts the video
        (0.0, 0.0, 0.5, 0.5),
        (0.0, 1.0, 2.0, 3.0),  # it sets in later: silence until then
        (1.0, 0.0, 2.0, 1.0),  # it sets in earlier: what no frame can show is left out
        (1.0, 0.0, 0.5, None),  # it is over before the first frame
    ],
)
def test_audio_that_does_not_fit_the_video(tmp_path, video_seconds, audio_seconds, audio_length, expected):
    shifted(
        tmp_path / "clip.mkv",
        numbered_frames(20),
        tone(audio_length, 440),
        video_seconds=video_seconds,
        audio_seconds=audio_seconds,
    )
    dataset = prepare([Annotation("clip", "clip.mkv", (), "train")], tmp_path, tmp_path / "dataset", CONFIG)
    # The last frame lasts until the audio ends, of which AAC fills up the last packet of 64 ms.
    assert 0 <= len(dataset.frames(0)) - max(20, 10 * (audio_seconds + audio_length)) <= 1
    assert dataset.columns["has_audio"][0] == (expected is not None)
    if expected is not None:
        audio = dataset.audio(0) / 32767
        assert len(audio) / 16000 == pytest.approx(expected, abs=0.15)  # AAC ends on a frame of 1024 samples
        loud = np.flatnonzero(np.abs(audio) > 0.1)
        assert loud[0] / 16000 == pytest.approx(audio_seconds, abs=0.1)


def test_a_segment_shorter_than_a_sample_has_no_audio(tmp_path):
    waveform = tone(2.0, 440)
    path = write_video(tmp_path / "clip.mkv", frames=numbered_frames(20), waveform=waveform)
    write_video(tmp_path / "audio.m4a", frames=None, waveform=waveform)
    clip = read_clip(path, start_seconds=1, end_seconds=1.00001)
    assert len(clip.frames) == 1
    assert clip.waveform is None
    assert clip.notes == ("no audio in this segment",)
    with pytest.raises(EmptySegmentError, match=r"audio\.m4a: no audio from 1 s to 1\.00001 s"):
        read_clip(tmp_path / "audio.m4a", start_seconds=1, end_seconds=1.00001)
    with pytest.raises(EmptySegmentError, match=r"audio\.m4a: no audio from 3 s on"):
        read_clip(tmp_path / "audio.m4a", start_seconds=3)
    clips = [Annotation(name, name, (), "train", 1.0, 1.00001) for name in ("clip.mkv", "audio.m4a")]
    dataset = prepare(clips, tmp_path, tmp_path / "dataset", CONFIG)
    assert dataset.columns["id"].tolist() == ["clip.mkv"]
    assert not dataset.columns["has_audio"][0]


def test_a_fault_of_ours_that_a_file_finds_costs_that_file(tmp_path, monkeypatch):
    def faulty(*_arguments, **_options):
        raise AssertionError("no such form")

    monkeypatch.setattr(clip_reader, "read_clip", faulty)
    (tmp_path / "odd.mp4").write_bytes(b"odd")
    task = clip_reader.Task(Annotation("odd", "odd.mp4", (), "train"), tmp_path / "odd.mp4", tmp_path / "spool-0")
    answer = clip_reader.read_encoded(clip_reader.read_media, PrepareConfig(), None, 0, task)
    assert isinstance(answer, MediaError)
    assert "odd.mp4: unexpected AssertionError, please report it: no such form" in str(answer)
