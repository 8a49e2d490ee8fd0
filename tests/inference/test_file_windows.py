"""The audio of a file longer than a segment (5 minutes, as they are) is heard wherever it begins and ends."""

import numpy as np
import pytest

from avdistill.errors import NoStreamError
from avdistill.inference.file_windows import file_items
from avdistill.inputs import AudioInput, VideoInput
from avdistill.preparation.prepare import PrepareConfig
from support.timed_files import write_runs

RATE = 1000


def ramp(seconds):
    """The level tells the time."""
    return (np.arange(seconds * RATE) % 32000 + 1).astype(np.float32) / 32768


def read(path, view, **options):
    items = file_items(path, view, PrepareConfig(sample_rate_hz=RATE, short_side=None, **options))
    return list(items.segments())


@pytest.mark.parametrize(
    ("video", "begin", "end"),
    [
        (610, 70, 610),  # more than a minute after the video, on into the third segment
        (610, 0, 610),
        (500, 400, 500),  # in the second segment
        (500, 400, 650),
        (10, 400, 500),  # after the video
        (10, 700, 720),  # in a segment of its own after one with nothing
        (10, 0, 610),
        (300, 0, 300),  # a segment, exactly
    ],
)
def test_audio_is_heard_where_it_lies(tmp_path, video, begin, end):
    audio = ramp(end - begin)
    path = write_runs(tmp_path / "clip.mkv", [(begin, audio)], rate=RATE, seconds=video, fps=1)
    segments = read(path, AudioInput(seconds=1.0))
    expected = np.concatenate([np.zeros(begin * RATE), np.round(audio * 32767)])
    np.testing.assert_array_equal(np.concatenate(segments), expected)
    assert all(len(segment) for segment in segments)


def test_audio_that_is_over_before_the_video_is_none(tmp_path):
    path = write_runs(tmp_path / "clip.mkv", [(0, ramp(5))], rate=RATE, seconds=10, fps=1, video_from=80)
    with pytest.raises(NoStreamError, match="no audio, which this student takes"):
        read(path, AudioInput(seconds=1.0))


@pytest.mark.parametrize("fps", [1.0, None])
@pytest.mark.parametrize("video", [10, 30, 40])
def test_a_video_ends_before_the_audio(tmp_path, video, fps):
    path = write_runs(tmp_path / "clip.mkv", [(0, ramp(150))], rate=RATE, seconds=video, fps=1)
    segments = read(path, VideoInput(frames=4, size=(48, 64)), fps=fps)
    # At a rate the last frame lasts until the audio ends; every frame of the file comes once.
    assert sum(map(len, segments)) == (video if fps is None else 150)
