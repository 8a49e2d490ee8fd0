"""A student on files: the same as on a prepared dataset, also where a long file is read in pieces; failures in a
line.
"""

import csv
import json
import math
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise

import av
import numpy as np
import pytest
import torch

import avdistill
from avdistill.cli import main
from avdistill.dataset.clip_dataset import ClipDataset
from avdistill.dataset.windows import evaluation_window, sliding_starts, spaced_starts
from avdistill.errors import (
    CheckpointError,
    ConfigError,
    MediaError,
    NoStreamError,
    NotFiniteError,
    UnreadableFileError,
)
from avdistill.inference import file_windows as windows_module
from avdistill.inference.file_windows import file_items, read_windows
from avdistill.inference.predictor import Student
from avdistill.inference.runner import run_network
from avdistill.inputs import AudioInput, VideoInput
from avdistill.media import read_clip
from avdistill.models.checkpoint import save_student
from avdistill.models.registry import build_model
from avdistill.preparation import clip_reader
from avdistill.preparation.prepare import PrepareConfig, prepare
from avdistill.types import Features, Network, StudentConfig
from support.media_files import tone, write_video

CLASSES = ("class_0", "class_1", "class_2")
VIDEO = StudentConfig("shifted_frames", CLASSES, VideoInput(frames=4, size=(24, 32)), 10.0, 16000, options={"width": 8})
AUDIO = StudentConfig("logmel_cnn", CLASSES, AudioInput(seconds=0.3), 10.0, 16000, options={"width": 8})


def write_run(folder, description):
    """A run folder with a student of random weights whose logits differ between inputs."""
    torch.manual_seed(0)
    student = build_model(description.model, len(description.classes), description.options)
    with torch.no_grad():
        student.classifier.weight *= 30
    (folder / "best").mkdir(parents=True)
    save_student(folder / "best", student, description)
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("runs") / "sees", VIDEO)


@pytest.fixture(scope="module")
def hearing_run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("runs") / "hears", AUDIO)


def assert_as_in_the_dataset(student, dataset, videos, **options):
    clips = np.arange(0, len(dataset), 4)
    d = student.config
    expected = run_network(student.network, dataset, clips, d.view, multi_label=d.multi_label, **options)
    assert expected.present.sum() >= 3
    assert expected.probabilities.std(0).max() > 1e-3  # clips differ: the comparison means something
    for row in np.flatnonzero(expected.present):
        prediction = student.predict(videos / str(dataset.columns["path"][clips[row]]), **options)
        np.testing.assert_allclose(prediction.probabilities, expected.probabilities[row], atol=1e-5)
        np.testing.assert_allclose(prediction.embedding, expected.embedding[row], atol=1e-5)


@pytest.mark.parametrize("options", [{}, {"overlap": True}, {"windows": 1}, {"windows": 3}, {"batch_size": 2}])
@pytest.mark.parametrize("modality", ["video", "audio"])
def test_a_file_gives_what_its_clip_in_a_dataset_gives(prepared, small_set, run, hearing_run, modality, options):
    student = Student.from_pretrained(run if modality == "video" else hearing_run, "cpu")
    if "overlap" in options:
        options = {"stride": 3 if modality == "video" else 3000}
    assert_as_in_the_dataset(student, ClipDataset(prepared), small_set[0], **options)


def test_every_frame_several_labels_and_the_reading_of_the_dataset(small_set, tmp_path):
    """No rate, sigmoids, and a dataset made with a region and a size of its own."""
    videos, annotations = small_set
    config = PrepareConfig(fps=None, short_side=None, size=(30, 40), region=(4, 2, 40, 28))
    dataset = prepare(annotations, videos, tmp_path / "dataset", config, workers=1)
    description = replace(VIDEO, fps=None, multi_label=True, **dataset.video_reading)
    student = Student.from_pretrained(write_run(tmp_path / "run", description))
    assert student.reading == config
    # What is not said again stays as it was for the dataset.
    assert Student.from_pretrained(tmp_path / "run", region=(0, 0, 20, 20)).reading == replace(
        config, region=(0, 0, 20, 20)
    )
    assert Student.from_pretrained(tmp_path / "run", size=(24, 32)).reading == replace(config, size=(24, 32))
    assert Student.from_pretrained(tmp_path / "run", short_side=24).reading == replace(config, size=None, short_side=24)
    assert Student.from_pretrained(tmp_path / "run", region="whole").reading == replace(config, region=None)
    assert_as_in_the_dataset(student, dataset, videos)
    assert_as_in_the_dataset(student, dataset, videos, stride=1)


def test_an_output_that_is_not_finite_is_an_error(small_set, run, tmp_path, capsys):
    videos, annotations = small_set
    file = videos / annotations[0].path
    student = Student.from_pretrained(run, "cpu")
    with torch.no_grad():
        student.network.classifier.bias[1] = math.nan
    with pytest.raises(NotFiniteError, match=r"the student's output between 0 and .* s is not finite"):
        student.predict(file)
    student.save_pretrained(tmp_path / "broken")
    assert main(["predict", str(tmp_path / "broken"), str(file), "--csv", str(tmp_path / "table.csv")]) == 1
    told = capsys.readouterr()
    assert "is not finite" in told.err
    assert told.out == ""
    assert (tmp_path / "table.csv").read_text().splitlines() == ["file,start_seconds,end_seconds,label,probability"]


@pytest.fixture(scope="module")
def long_files(tmp_path_factory):
    """12.3 s of moving images and audio that both change all the time; the audio of `beyond` outlasts the video."""
    folder = tmp_path_factory.mktemp("long")
    rng = np.random.default_rng(0)
    frames = np.repeat(rng.integers(0, 256, (123, 4, 6, 3)), 8, axis=1).repeat(8, axis=2).astype(np.uint8)
    audio = 0.3 * rng.standard_normal(round(16000 * 12.3)).clip(-3, 3)
    codecs = ("mpeg4", "pcm_s16le")
    write_video(folder / "both.mkv", frames=frames, waveform=audio, codecs=codecs)
    write_video(folder / "beyond.mkv", frames=frames[:73], waveform=audio, codecs=codecs)
    write_video(folder / "audio.wav", frames=None, waveform=audio, codecs=codecs)
    return folder


@pytest.fixture
def segments(monkeypatch):
    """Segments of 2 seconds; tells how many frames each reading gave, and of what size."""
    monkeypatch.setattr(windows_module, "_VIDEO_SEGMENT_SECONDS", 2)
    monkeypatch.setattr(windows_module, "_AUDIO_SEGMENT_SECONDS", 2)
    sizes = []

    def recorded(*arguments, **options):
        clip = read_clip(*arguments, **options)
        sizes.append(() if clip.frames is None else clip.frames.shape[:3])
        return clip

    monkeypatch.setattr(clip_reader, "read_clip", recorded)
    return sizes


@pytest.mark.parametrize("fps", [10.0, 3.0, 29.97, None])
@pytest.mark.parametrize("options", [{}, {"stride": 3}, {"windows": 4}])
def test_a_long_video_is_read_in_pieces_and_gives_the_same_windows(long_files, segments, fps, options):
    view, config = VideoInput(frames=7, size=(24, 32)), PrepareConfig(fps=fps, short_side=32)
    file = long_files / "both.mkv"
    whole = read_clip(file, fps=fps, short_side=32).frames
    assert len(whole) == (123 if fps is None else math.ceil(12.3 * fps))
    if "windows" in options:
        starts = spaced_starts(len(whole), 7, 4)
    else:
        starts = sliding_starts(len(whole), 7, options.get("stride", 7))
    found = list(read_windows(file_items(file, view, config), **options))
    assert len(found) == len(starts)
    for window, start in zip(found, starts, strict=True):
        np.testing.assert_array_equal(window.items, evaluation_window(whole, view, 16000, start))
        assert window.start_seconds == pytest.approx(start / (fps or 10), abs=1e-3)
        assert window.end_seconds == pytest.approx(min(start + 7, len(whole)) / (fps or 10), abs=1e-3)
    assert max(count for count, _, _ in segments) <= 60
    assert len(segments) >= 7


@pytest.mark.parametrize("name", ["both.mkv", "beyond.mkv", "audio.wav"])
@pytest.mark.parametrize("options", [{}, {"windows": 4}])
def test_a_long_audio_is_read_in_pieces_and_gives_the_same_windows(long_files, segments, name, options):
    view, config = AudioInput(seconds=0.7), PrepareConfig()
    whole = np.round(read_clip(long_files / name).waveform * 32767).astype(np.int16)
    assert len(whole) == pytest.approx(12.3 * 16000, abs=20)
    starts = (
        spaced_starts(len(whole), 11200, 4) if options else sliding_starts(len(whole), 11200, 11200, align_last=True)
    )
    found = list(read_windows(file_items(long_files / name, view, config), **options))
    assert len(found) == len(starts)
    for window, start in zip(found, starts, strict=True):
        expected = evaluation_window(whole, view, 16000, start)
        np.testing.assert_allclose(window.items, expected, atol=2 / 32767)
        assert window.start_seconds == pytest.approx(start / 16000)
    assert len(segments) >= (4 if name == "beyond.mkv" else 7)
    assert set(segments) <= {(), (2, 1, 1), (1, 1, 1)}


def test_a_file_smaller_than_a_view_that_does_not_resize_is_told_by_name(long_files):
    view = VideoInput(frames=4, size=(25, 30), resize=False)
    items = file_items(long_files / "both.mkv", view, PrepareConfig(fps=4, short_side=24))
    with pytest.raises(MediaError, match=r"both\.mkv: frames of 24x36 pixels .* hold no window of 25x30"):
        next(read_windows(items))


def test_audio_that_sets_in_late_is_silent_until_then(tmp_path, segments):
    file = tmp_path / "late.mkv"
    with av.open(str(file), "w") as container:
        video = container.add_stream("mpeg4", rate=10)
        video.height, video.width, video.pix_fmt = 32, 48, "yuv420p"
        audio = container.add_stream("pcm_s16le", rate=16000)
        audio.layout = "mono"
        for _ in range(90):
            image = av.VideoFrame.from_ndarray(np.zeros((32, 48, 3), np.uint8), format="rgb24")
            container.mux(video.encode(image))
        container.mux(video.encode(None))
        samples = np.full((1, 16000), 8000, np.int16)
        frame = av.AudioFrame.from_ndarray(samples, format="s16", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = 16000, 5 * 16000, Fraction(1, 16000)
        container.mux(audio.encode(frame))
    found = list(read_windows(file_items(file, AudioInput(seconds=1.0), PrepareConfig())))
    assert [float(np.abs(window.items).max()) > 0 for window in found] == [False] * 5 + [True]


class Brightness(Network):
    """Logits that say how bright the frames of a window are: dark, grey, bright."""

    modality = "video"
    embedding_dim = 1

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(4.0))

    def forward(self, inputs):
        level = inputs.mean((1, 2, 3, 4))[:, None]
        return Features(embedding=level, logits=-self.scale * (level - torch.tensor([-1.5, 0.2, 2.0])).abs())


@pytest.fixture
def brightness():
    description = StudentConfig("", ("dark", "grey", "bright"), VideoInput(frames=4, size=(32, 48)), 4.0, 16000)
    return Student(Brightness().eval(), description, PrepareConfig(fps=4.0, short_side=32))


@pytest.fixture
def scenes(tmp_path):
    """3 s dark, 2 s bright, 1.5 s grey."""
    levels = np.repeat([20, 240, 130], [30, 20, 15]).astype(np.uint8)
    return write_video(tmp_path / "scenes.mp4", frames=np.broadcast_to(levels[:, None, None, None], (65, 32, 48, 3)))


def test_neighboring_windows_of_one_label_are_one_segment(brightness, scenes):
    prediction = brightness.predict(scenes, top=2)
    times = [(s.label, s.start_seconds, s.end_seconds) for s in prediction.segments]
    assert times == [("dark", 0, 3), ("bright", 3, 5), ("grey", 5, 6.5)]
    assert prediction.windows == 7
    clips = [(0, 4, 8), (12, 16), (20, 24)]
    frames = read_clip(scenes, fps=4.0).frames
    for segment, starts in zip(prediction.segments, clips, strict=True):
        each = []
        for start in starts:
            window = evaluation_window(frames, VideoInput(frames=4, size=(32, 48)), 16000, start)
            level = (window.numpy() / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
            logits = -4 * np.abs(level.mean() - [-1.5, 0.2, 2.0])
            each.append(np.exp(logits) / np.exp(logits).sum())
        mean = np.mean(each, axis=0)
        assert segment.probability == pytest.approx(mean.max(), abs=1e-5)
        assert [label for label, _ in segment.top] == [("dark", "grey", "bright")[i] for i in np.argsort(-mean)[:2]]
    assert prediction.label == "dark"
    told = json.loads(json.dumps(prediction.describe(), allow_nan=False))
    assert told["segments"][1]["top"][0] == {"label": "bright", "probability": prediction.segments[1].probability}
    assert "3.00 -      5.00 s" in str(prediction)


def test_overlapping_windows_overlap_in_time(brightness, scenes):
    segments = brightness.predict(scenes, stride=2).segments
    assert segments[0].start_seconds == 0
    assert segments[-1].end_seconds == 6.5
    assert all(a.end_seconds - b.start_seconds == 0.5 for a, b in pairwise(segments))


def test_three_lines_of_python(small_set, run):
    student = avdistill.Student.from_pretrained(run)
    file = small_set[0] / "test_1.mp4"
    assert str(file) in str(student.predict(str(file)))
    np.testing.assert_array_equal(student.embed(file), student.predict(file).embedding)
    assert student.embed(file).shape == (128,)


def test_a_saved_student_is_loaded_as_the_run_is(small_set, run, tmp_path):
    student = Student.from_pretrained(str(run))
    student.save_pretrained(tmp_path / "saved" / "here")
    assert {p.name for p in (tmp_path / "saved" / "here").iterdir()} == {"config.json", "model.safetensors"}
    expected = student.embed(small_set[0] / "test_1.mp4")
    for folder in (run / "best", tmp_path / "saved" / "here"):
        again = Student.from_pretrained(folder)
        assert (again.config, again.reading) == (student.config, student.reading)
        np.testing.assert_array_equal(again.embed(small_set[0] / "test_1.mp4"), expected)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text("{}")  # a run folder's own, before anything is saved
    with pytest.raises(CheckpointError, match=r"no trained network here \(model\.safetensors is missing\)"):
        Student.from_pretrained(tmp_path / "run")


def test_what_cannot_be_predicted_is_said_in_a_line(small_set, run, hearing_run, tmp_path):
    heard = write_video(tmp_path / "heard.m4a", frames=None, waveform=tone(1.0, 300))
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video")
    cases = (
        (run, heard, NoStreamError, "no video"),
        (hearing_run, small_set[0] / "test_0.mp4", NoStreamError, "no audio"),
        (run, broken, UnreadableFileError, "broken"),
        (run, tmp_path / "none.mp4", FileNotFoundError, "no such file"),
    )
    for folder, file, kind, message in cases:
        with pytest.raises(kind, match=message) as caught:
            Student.from_pretrained(folder).predict(file)
        assert "\n" not in str(caught.value)
    with pytest.raises(CheckpointError, match="no trained network"):
        Student.from_pretrained(tmp_path)
    for wrong in ({"top": 0}, {"windows": 0}, {"stride": 5}, {"stride": 0}, {"windows": 2, "stride": 2}):
        with pytest.raises(ConfigError):
            Student.from_pretrained(run).predict(small_set[0] / "test_1.mp4", **wrong)
    with pytest.raises(ConfigError, match="one pixel"):
        Student.from_pretrained(run, short_side=0)
    with pytest.raises(MediaError, match="region"):
        Student.from_pretrained(run, region=(0, 0, 500, 500)).predict(small_set[0] / "test_1.mp4")


def test_the_verb_predicts_what_it_can(small_set, run, tmp_path, capsys):
    good = [str(small_set[0] / f"test_{i}.mp4") for i in (1, 2)]
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video")
    table = tmp_path / "tables" / "out.csv"
    assert main(["predict", str(run), good[0], str(broken), good[1], "--json", "--top", "2", "--csv", str(table)]) == 1
    told = capsys.readouterr()
    errors = [line for line in told.err.splitlines() if line.startswith("avdistill: ")]
    assert len(errors) == 2
    assert str(broken) in errors[0]
    assert errors[1] == "avdistill: 1 of 3 files could not be predicted"
    objects = [json.loads(line) for line in told.out.splitlines()]
    assert [o["file"] for o in objects] == good
    student = Student.from_pretrained(run)
    for told_object, file in zip(objects, good, strict=True):
        assert told_object == student.predict(file, top=2).describe()
    rows = list(csv.DictReader(table.read_text().splitlines()))
    assert list(rows[0]) == ["file", "start_seconds", "end_seconds", "label", "probability"]
    expected = [(o["file"], s["label"], s["probability"]) for o in objects for s in o["segments"]]
    assert [(r["file"], r["label"], float(r["probability"])) for r in rows] == expected
    assert [p.name for p in table.parent.iterdir()] == ["out.csv"]

    assert main(["predict", str(run), *good, "--csv", "-"]) == 0
    assert capsys.readouterr().out.splitlines() == table.read_text().splitlines()
    assert main(["predict", str(run), good[0], "--region", "4,2,40,28", "--size", "30", "40"]) == 0
    reading = Student.from_pretrained(run, size=(30, 40), region=(4, 2, 40, 28))
    assert capsys.readouterr().out.strip() == str(reading.predict(good[0]))


def test_a_name_that_is_no_text_is_predicted_and_told_by_its_bytes(small_set, run, tmp_path):
    odd = os.fsencode(tmp_path) + b"/caf\xe9.mp4"
    shutil.copy(os.fsencode(small_set[0] / "test_1.mp4"), odd)
    file, plain = os.fsdecode(odd), str(small_set[0] / "test_2.mp4")
    program = (
        "import sys; from avdistill.cli import main; *words, table = sys.argv[1:]; words = ['predict', *words];"
        " sys.exit(main([*words, '--csv', table, '--json']) or main(words) or main([*words, '--csv', '-']))"
    )
    words = [sys.executable, "-c", program, str(run), file, plain, str(tmp_path / "out.csv")]
    strict = os.environ | {"PYTHONIOENCODING": "utf-8:strict"}
    told = subprocess.run(words, capture_output=True, check=True, env=strict).stdout.splitlines()
    assert [json.loads(line)["file"] for line in told[:2]] == [file, plain]
    assert b"caf\\udce9.mp4" in told[2]
    table = (tmp_path / "out.csv").read_bytes().splitlines()
    assert told[-len(table) :] == table
    assert {line.split(b",")[0] for line in table[1:]} == {odd, os.fsencode(plain)}


def test_wrong_calls_of_the_verb(small_set, run, tmp_path, capsys):
    file = str(small_set[0] / "test_1.mp4")
    for words, code, message in (
        ([run], 2, "at least one file"),
        ([run, small_set[0]], 2, "pass the files in it"),
        ([run, file, "--json", "--csv", "-"], 2, "choose one"),
        ([run, file, "--csv", file], 1, "exists already"),
        ([run, file, "--stride", "9"], 2, "expected 1 to 4"),
        ([tmp_path, file], 1, "no trained network"),
    ):
        assert main(["predict", *map(str, words)]) == code
        told = capsys.readouterr()
        assert message in told.err
        assert told.out == ""
