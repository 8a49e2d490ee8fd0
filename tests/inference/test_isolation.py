"""A file that crashes the decoder, hangs it or claims too much costs that file, in a line, and never the process."""

import sys

import numpy as np
import pytest

from avdistill.annotations import Annotation
from avdistill.cli import main
from avdistill.errors import ConfigError, EmptySegmentError, MediaError
from avdistill.inference import file_windows
from avdistill.inference.file_windows import file_items
from avdistill.inference.predictor import Student
from avdistill.inputs import VideoInput
from avdistill.media import read_clip
from avdistill.models.checkpoint import save_student
from avdistill.models.registry import build_model
from avdistill.preparation.clip_reader import IsolatedReader
from avdistill.preparation.prepare import PrepareConfig
from avdistill.types import StudentConfig
from support.faulty_readers import read_or_fail
from support.media_files import numbered_frames, write_timed, write_video

VIEW = VideoInput(frames=4, size=(24, 32))
CONFIG = StudentConfig("shifted_frames", ("a", "b"), VIEW, 10.0, 16000, options={"width": 8})


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    (folder / "best").mkdir()
    save_student(folder / "best", build_model(CONFIG.model, 2, CONFIG.options), CONFIG)
    return folder


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Good files, one a strip whose frames would have 8 MB each at the scale of the student."""
    folder = tmp_path_factory.mktemp("files")
    good = write_video(folder / "good.mp4", frames=numbered_frames(10)).read_bytes()
    for name in ("crashes_1", "hangs_1", "grows_1"):
        (folder / f"{name}.mp4").write_bytes(good)
    write_video(folder / "strip.mkv", frames=numbered_frames(2, 2, 2048), codecs=("ffv1", ""))
    return folder


def test_a_file_that_fails_in_any_way_costs_that_file(run, files, fresh_readers):
    student = Student.from_pretrained(run, "cpu")
    with IsolatedReader(read_or_fail, time_limit_seconds=1.5) as reader:
        before = student.predict(files / "good.mp4", reader=reader)
        for name, message in (
            ("crashes_1", "the worker process was ended by SIGSEGV"),
            ("grows_1", "too large for memory; give segments"),
            ("hangs_1", r"took longer than 1\.5 s"),
        ):
            with pytest.raises(MediaError, match=rf"{name}\.mp4: {message}"):
                student.predict(files / f"{name}.mp4", reader=reader)
        with pytest.raises(FileNotFoundError, match="no such file"):
            student.predict(files / "none.mp4", reader=reader)
        after = student.predict(files / "good.mp4", reader=reader)
        np.testing.assert_array_equal(student.embed(files / "good.mp4", windows=1, reader=reader).shape, (128,))
    np.testing.assert_array_equal(before.probabilities, after.probabilities)
    with pytest.raises(ConfigError, match="time_limit_seconds: expected more than 0"):
        IsolatedReader(time_limit_seconds=0)


def test_the_verb_goes_on_with_the_next_file(run, files, capsys):
    words = [str(files / "strip.mkv"), str(files / "good.mp4")]
    assert main(["predict", str(run), *words, "--time-limit", "60"]) == 1
    told = capsys.readouterr()
    assert "strip.mkv: expected a frame at most 16 times as long as wide, found 2048x2" in told.err
    assert "1 of 2 files could not be predicted" in told.err
    assert told.out.startswith(f"{words[1]}: ")


def test_the_limits_hold_in_the_reading_process(files, tmp_path):
    path, whole = files / "good.mp4", Annotation("good", "good.mp4", (), "")
    with IsolatedReader(memory_limit_bytes=120 * 2**20) as reader:
        read = reader.for_one_file()
        clip = read(path, whole, PrepareConfig(fps=10, short_side=32))
        np.testing.assert_array_equal(clip.frames, read_clip(path, fps=10, short_side=32).frames)
        with pytest.raises(EmptySegmentError):  # the kind of an error stays
            read(path, Annotation("good", "good.mp4", (), "", 60.0), PrepareConfig())
        if sys.platform == "linux":  # elsewhere the system does not enforce the limit
            with pytest.raises(MediaError, match=r"good\.mp4: too large for memory"):
                read(path, whole, PrepareConfig(fps=400, short_side=None, size=(384, 512)))
            read(path, whole, PrepareConfig(fps=10, short_side=32))


def test_a_file_of_two_frames_does_not_claim_years(tmp_path, monkeypatch):
    path = write_timed(tmp_path / "slides.mkv", [0, 100])
    monkeypatch.setattr(file_windows, "_LONGEST_HOURS", 1 / 60)
    items = file_items(path, VIEW, PrepareConfig(fps=1, short_side=24))
    with pytest.raises(MediaError, match=r"slides\.mkv: longer than 0\.0167 h"):
        list(items.segments())
