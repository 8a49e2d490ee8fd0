"""The clock rule against arithmetic: the frame at time t is the last whose pts is at most t, whatever the clock."""

import math
from fractions import Fraction

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avdistill.inference.file_windows import file_items
from avdistill.inputs import VideoInput
from avdistill.media import read_clip
from avdistill.media.scaler import Scaler
from avdistill.media.video_stream import FrameBuffer, VideoTrack
from avdistill.preparation.prepare import PrepareConfig
from support.media_files import numbered_frames, tone, write_timed
from support.timed_files import level, write_runs


def frames_at(ticks, duration, tick, fps, start=Fraction(0), end=None):
    """Numbers of the frames that a track takes of decoded ones with these times."""
    with FrameBuffer("stream", None) as buffer:
        track = VideoTrack("stream", start, end, fps, Scaler(None, None, None), buffer, tick)
        for number, time in enumerate(ticks):
            frame = av.VideoFrame.from_ndarray(np.full((16, 16, 3), number, np.uint8), format="rgb24")
            frame.pts, frame.time_base, frame.duration = time, tick, duration
            track.add(frame)
        track.finish(None)
        frames, _ = track.result()
    return [] if frames is None else frames[:, 0, 0, 0].tolist()


@settings(max_examples=60, deadline=None)
@given(
    gaps=st.lists(st.integers(1, 900), min_size=0, max_size=20),
    first=st.integers(-500, 500),
    duration=st.integers(4, 500),
    per_second=st.sampled_from([1, 2, 4, 5, 8, 10, 20, 25, 40, 50]),  # their times are whole milliseconds
    start=st.integers(0, 3000),
    length=st.integers(1, 3000) | st.none(),
)
def test_of_any_times_the_frame_shown_is_taken(gaps, first, duration, per_second, start, length):
    times = np.cumsum([0, *gaps]).tolist()
    end = times[-1] + duration
    expected, time = [], start
    while time < (start + length if length else end) and time < end - 1:  # the end is rounded: one tick is no time
        expected.append(max(number for number, begins in enumerate(times) if begins <= time))
        time += 1000 // per_second
    found = frames_at(
        [first + time for time in times],
        duration,
        Fraction(1, 1000),
        float(per_second),
        Fraction(start, 1000),
        Fraction(start + length, 1000) if length else None,
    )
    assert found == expected


RATES = [Fraction(15), Fraction(24000, 1001), Fraction(24), Fraction(25), Fraction(30000, 1001), Fraction(30)]
RATES += [Fraction(2997, 100), Fraction(50), Fraction(60000, 1001), Fraction(60), Fraction(100)]


@settings(max_examples=150, deadline=None)
@given(
    rate=st.sampled_from(RATES),
    tick=st.sampled_from([Fraction(1, n) for n in (1000, 600, 12800, 15360, 90000)]),
    first=st.fractions(0, 2, max_denominator=48000),
    every=st.integers(1, 5),
    count=st.integers(1, 60),
    decimals=st.sampled_from([2, 3, 4, 9]),
)
def test_a_rate_that_divides_the_files_takes_every_frame_once(rate, tick, first, every, count, decimals):
    ticks = [round((first + n / rate) / tick) for n in range(count)]
    requested = round(float(rate / every), decimals)
    if abs(requested * every / rate - 1) > 1.1e-6:  # 29.97 is a name of 30000/1001, 7.49 of nothing
        requested = float(rate / every)
    assert frames_at(ticks, round(1 / rate / tick), tick, requested) == list(range(0, count, every))


@settings(max_examples=60, deadline=None)
@given(rate=st.integers(1, 60), fps=st.integers(1, 120), count=st.integers(1, 40))
def test_a_clock_that_counts_frames_is_exact(rate, fps, count):
    """As those of AVI: a tick is a frame, and none comes early."""
    expected = [math.floor(Fraction(k * rate, fps)) for k in range(math.ceil(Fraction(count * fps, rate)))]
    assert frames_at(range(7, 7 + count), 1, Fraction(1, rate), float(fps)) == expected


@pytest.mark.parametrize("requested", [29.97, 30000 / 1001])
@pytest.mark.parametrize("rate", [Fraction(2997, 100), Fraction(30000, 1001)])
def test_a_rate_and_its_decimal_number_are_the_same(rate, requested):
    assert frames_at(range(200), 1, 1 / rate, requested) == list(range(200))


@pytest.mark.parametrize("suffix", ["mkv", "webm", "flv", "ts", "mp4", "mov", "avi", "wmv"])
@pytest.mark.parametrize("rate", [Fraction(30), Fraction(30000, 1001), Fraction(24000, 1001)])
def test_every_frame_of_a_file_once(tmp_path, suffix, rate):
    codec = {"webm": "libvpx", "flv": "flv", "ts": "mpeg2video"}.get(suffix, "mpeg4")
    frames = numbered_frames(24)
    times = [n / rate for n in range(24)]
    path = write_timed(tmp_path / f"a.{suffix}", times, frames=frames, tick=1 / rate, codec=codec)
    for every in (1, 2, 3):
        taken = read_clip(path, fps=float(rate / every)).frames
        np.testing.assert_allclose(taken.mean((1, 2, 3)), frames[::every].mean((1, 2, 3)), atol=4)


SLIDES = [0, 3, 8]  # seconds at which they appear; the audio ends at 10 s


@pytest.fixture(scope="module", params=["mkv", "mov", "mp4", "ts", "flv", "webm"])
def slides(request, tmp_path_factory):
    """Three slides, then silence in the video until the audio ends."""
    path = tmp_path_factory.mktemp("slides") / f"slides.{request.param}"
    vp8 = request.param == "webm"
    with av.open(str(path), "w") as container:
        video = container.add_stream("libvpx" if vp8 else "flv" if path.suffix == ".flv" else "mpeg4", rate=10)
        video.height, video.width, video.pix_fmt = 48, 64, "yuv420p"
        audio = container.add_stream("libopus" if vp8 else "aac", rate=48000 if vp8 else 16000, layout="mono")
        rate = audio.rate
        for time, image in zip(SLIDES, numbered_frames(3), strict=True):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = time * 10, Fraction(1, 10)
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        frame = av.AudioFrame.from_ndarray(tone(10, 440, rate)[None].astype(np.float32), format="fltp", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = rate, 0, Fraction(1, rate)
        container.mux(audio.encode(frame))
        container.mux(audio.encode(None))
    return path


def slide_at(clip):
    return np.abs(clip.frames.mean((1, 2, 3))[:, None] - numbered_frames(3).mean((1, 2, 3))).argmin(1).tolist()


@pytest.mark.parametrize(("start", "end"), [(0, 10), (4, 6), (2.5, 3.5), (5.5, 8.5), (9, 10), (8, 9)])
def test_a_slide_is_shown_until_the_next(slides, start, end):
    clip = read_clip(slides, fps=4, start_seconds=start, end_seconds=end)
    times = start + np.arange((end - start) * 4) / 4
    assert slide_at(clip) == (np.searchsorted(SLIDES, times, "right") - 1).tolist()
    every = read_clip(slides, fps=None, start_seconds=start, end_seconds=end)
    assert slide_at(every) == sorted(set(slide_at(clip)))


def test_the_last_slide_lasts_as_long_as_the_audio(slides):
    clip = read_clip(slides, fps=4)
    assert slide_at(clip)[:40] == [0] * 12 + [1] * 20 + [2] * 8
    # Encoders begin earlier and fill up their last packet: MPEG-TS and FLV do not say by how much.
    assert 40 <= len(clip.frames) <= 41
    config = PrepareConfig(fps=4.0, short_side=None)
    segments = file_items(slides, VideoInput(frames=2, size=(16, 16)), config).segments()
    assert sum(map(len, segments)) == len(clip.frames)


@pytest.mark.parametrize("segment", [(0, 100), (20, 30), (97, None)])
def test_an_image_under_audio_is_a_video_as_long(tmp_path, segment):
    path = write_runs(tmp_path / "still.mkv", [(0, level(100, 0.5))], seconds=1, fps=1)
    start, end = segment
    clip = read_clip(path, fps=4, start_seconds=start, end_seconds=end)
    assert len(clip.frames) == ((end or 100) - start) * 4
    assert (clip.frames == clip.frames[0]).all()
    assert not clip.frame_times_seconds.any()


def test_audio_that_a_codec_fills_up_lengthens_no_video(tmp_path):
    path = write_runs(tmp_path / "padded.mkv", [(0, level(4.2, 0.5))], seconds=4)
    assert len(read_clip(path, fps=10).frames) == 40


def test_a_file_without_a_rate_gives_each_slide_once(tmp_path):
    """Read segment by segment, of which some begin with none of their own."""
    path = write_timed(tmp_path / "slides.mkv", [0, 10, 95, 95.5, 170])
    items = file_items(path, VideoInput(frames=2, size=(48, 64)), PrepareConfig(fps=None, short_side=None))
    frames = np.concatenate(list(items.segments()))
    np.testing.assert_allclose(frames.mean((1, 2, 3)), numbered_frames(5).mean((1, 2, 3)), atol=4)
    assert [items.seconds(number) for number in range(5)] == [0, 10, 95, 95.5, 170]
