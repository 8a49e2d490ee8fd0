"""Every sample lies where the file says: holes, overlaps and clocks that tremble, read whole and in segments."""

from fractions import Fraction

import av
import numpy as np
import pytest

from avdistill.annotations import Annotation
from avdistill.errors import EmptySegmentError
from avdistill.media import read_clip
from avdistill.media.audio_stream import AudioTrack
from avdistill.preparation.prepare import PrepareConfig, prepare
from support.media_files import numbered_frames, tone, write_video
from support.timed_files import level, with_constant_rate, write_runs


@pytest.fixture(scope="module")
def holed(tmp_path_factory):
    """0.125 for 2 s, nothing for 4 s, 0.5 for 2 s, nothing for 2 s, 0.25 for 2 s; exact in 16 bits."""
    runs = [(0, level(2, 0.125)), (6, level(2, 0.5)), (10, level(2, 0.25))]
    return write_runs(tmp_path_factory.mktemp("audio") / "holed.mkv", runs)


HOLED = np.concatenate([level(2, 0.125), level(4, 0), level(2, 0.5), level(2, 0), level(2, 0.25)])


def filled(seconds):
    return f"{seconds} s of audio missing, filled with silence"


def test_a_hole_is_silent(holed):
    clip = read_clip(holed)
    np.testing.assert_array_equal(clip.waveform, HOLED)
    assert clip.notes == (filled(6),)


@pytest.mark.parametrize(
    ("start", "end", "notes"),
    [
        (0, 2, ()),
        (1, 3, (filled(1),)),
        (1, 7, (filled(4),)),
        (3, 6.5, (filled(3),)),
        (4.5, None, (filled(3.5),)),
        # From 5 s on the reader seeks. What lies before the first sample it then finds is silent as well, but whether
        # the audio has set in before it cannot know.
        (5.5, 8, ()),
        (6, 8, ()),
        (7, 9, (filled(1),)),
        (7.5, 11, (filled(2),)),
        (8.5, None, (filled(1.5),)),  # a quarter of a second before it there is audio
    ],
)
def test_a_segment_is_that_part_of_the_whole(holed, start, end, notes):
    clip = read_clip(holed, start_seconds=start, end_seconds=end)
    stop = None if end is None else round(end * 16000)
    np.testing.assert_array_equal(clip.waveform, HOLED[round(start * 16000) : stop])
    assert clip.notes == notes


@pytest.mark.parametrize(("start", "end"), [(2, 5), (3, 4), (5.2, 5.8), (8, 10), (8.5, 9)])
def test_a_segment_in_a_hole_has_no_audio(holed, start, end):
    clip = read_clip(holed, start_seconds=start, end_seconds=end)
    assert clip.waveform is None
    assert clip.notes == ("no audio in this segment",)
    assert len(clip.frames) == np.ceil((end - start) * 4)


def test_a_hole_in_audio_alone(tmp_path):
    path = tmp_path / "holed.mka"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=16000, layout="mono")
        for seconds in (0, 3):
            frame = av.AudioFrame.from_ndarray(np.full((1, 16000), 4096, np.int16), format="s16", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = 16000, seconds * 16000, Fraction(1, 16000)
            container.mux(stream.encode(frame))
    clip = read_clip(path)
    np.testing.assert_array_equal(clip.waveform, np.concatenate([level(1, 0.125), level(2, 0), level(1, 0.125)]))
    assert clip.notes == (filled(2),)
    with pytest.raises(EmptySegmentError, match=r"no audio from 1\.5 s to 2\.5 s"):
        read_clip(path, start_seconds=1.5, end_seconds=2.5)


def test_a_hole_in_resampled_audio(tmp_path):
    runs = [(0, level(2, 0.125, 44100)), (3, level(2, 0.5, 44100)), (6, level(2, 0.25, 44100))]
    waveform = read_clip(write_runs(tmp_path / "holed.mkv", runs, rate=44100, seconds=8)).waveform
    assert len(waveform) == pytest.approx(8 * 16000, abs=2)
    for second, value in enumerate([0.125, 0.125, 0, 0.5, 0.5, 0, 0.25, 0.25]):
        inside = waveform[second * 16000 + 100 : (second + 1) * 16000 - 100]
        np.testing.assert_allclose(inside, value, atol=1e-3)


def test_a_hole_of_lost_packets_of_a_codec(tmp_path):
    whole = write_video(tmp_path / "whole.mkv", frames=numbered_frames(40), waveform=tone(4.0, 440))
    with av.open(str(whole)) as source, av.open(str(tmp_path / "lost.mkv"), "w") as target:
        streams = {stream.index: target.add_stream_from_template(stream) for stream in source.streams}
        for packet in source.demux():
            lost = packet.stream.type == "audio" and packet.dts is not None and 1 < packet.pts * packet.time_base < 2
            if packet.dts is not None and not lost:
                packet.stream = streams[packet.stream.index]
                target.mux(packet)
    clip, expected = read_clip(tmp_path / "lost.mkv"), read_clip(whole).waveform
    assert len(clip.waveform) == len(expected)
    (note,) = clip.notes
    assert float(note.removesuffix(" s of audio missing, filled with silence")) == pytest.approx(1, abs=0.13)
    assert not clip.waveform[18000:31000].any()
    for part in (slice(0, 15000), slice(34000, None)):  # a packet decodes with the one before it
        np.testing.assert_allclose(clip.waveform[part], expected[part], atol=1e-3)


def test_a_hole_too_long_to_be_one_ends_the_audio(tmp_path):
    runs = [(0, level(3, 0.125)), (70, level(3, 0.5))]
    path = write_runs(tmp_path / "jump.mkv", runs, seconds=75, fps=2)
    clip = read_clip(path)
    np.testing.assert_array_equal(clip.waveform, level(3, 0.125))
    assert clip.notes == ("audio times jump by 67 s",)
    assert clip.frame_times_seconds[-1] == 74.5
    clip = read_clip(path, start_seconds=70.5, end_seconds=72)
    np.testing.assert_array_equal(clip.waveform, level(1.5, 0.5))


@pytest.mark.parametrize("suffix", ["mkv", "mov"])
def test_times_that_tremble_move_nothing(tmp_path, suffix):
    ramp = np.linspace(0, 0.9, 8 * 16000, dtype=np.float32)
    late = np.random.default_rng(0).uniform(0, 0.02, 500)
    late[0] = 0
    runs = [
        (start / 16000 + late[number], ramp[start : start + 1024])
        for number, start in enumerate(range(0, len(ramp), 1024))
    ]
    clip = read_clip(write_runs(tmp_path / f"tremble.{suffix}", runs, seconds=8))
    assert clip.notes == ()
    np.testing.assert_allclose(clip.waveform, ramp, atol=1e-4)


@pytest.mark.parametrize("pace", [1.01, 0.99])
def test_small_errors_do_not_add_up(tmp_path, pace):
    """The clock of the file runs faster or slower than its samples: 80 ms over 8 s."""
    runs = [(start / 16000 * pace, level(0.064, (start + 1024) / 2**18)) for start in range(0, 8 * 16000, 1024)]
    clip = read_clip(write_runs(tmp_path / "pace.mkv", runs, seconds=9))
    assert len(clip.waveform) / 16000 == pytest.approx(8 * pace, abs=0.055)
    assert len(clip.notes) == 1
    for time, samples in runs:
        place = np.flatnonzero(clip.waveform == samples[0])
        assert place[0] / 16000 == pytest.approx(time, abs=0.055)


def test_of_audio_that_overlaps_the_first_stays(tmp_path):
    """Packets of a second, the second one 0.4 s too early, the last one 0.03 s: that is no more than a tremble."""
    runs = [(0, level(1, 0.125)), (0.6, level(1, 0.5)), (1.6, level(1, 0.25)), (2.57, level(1, 0.75))]
    clip = read_clip(write_runs(tmp_path / "overlap.mkv", runs, seconds=4, chunk=16000))
    expected = np.concatenate([level(1, 0.125), level(0.6, 0.5), level(1, 0.25), level(1, 0.75)])
    np.testing.assert_array_equal(clip.waveform, expected)
    assert clip.notes == ("0.4 s of audio dropped, it overlaps",)


def test_frames_that_tell_no_time_lie_before_the_first_that_does():
    audio = AudioTrack("stream.ogg", 16000)
    for pts in (None, None, 80000, 96000):
        frame = av.AudioFrame.from_ndarray(np.full((1, 16000), 4096, np.int16), format="s16", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = 16000, pts, Fraction(1, 16000)
        audio.add(frame)
    assert audio.first == 3
    np.testing.assert_array_equal(audio.cut(Fraction(0), None, Fraction(0)), [*level(3, 0), *level(4, 0.125)])
    assert audio.notes == []


@pytest.fixture(scope="module")
def avi(tmp_path_factory):
    """Audio for 6 of 12 s, in a file with true times and in one with false ones."""
    waveform = np.concatenate([tone(6.0, 440), np.zeros(6 * 16000)])
    path = tmp_path_factory.mktemp("avi") / "plain.avi"
    write_runs(path, [(0, waveform)], chunk=576, codec="mp3")
    return path, with_constant_rate(path, 12)


def test_the_audio_of_an_avi_is_counted(avi):
    plain, constant = avi
    clip = read_clip(constant)
    assert clip.notes == ()
    np.testing.assert_array_equal(clip.waveform, read_clip(plain).waveform)
    assert np.flatnonzero(np.abs(clip.waveform) > 0.1)[-1] / 16000 == pytest.approx(6, abs=0.1)


@pytest.mark.parametrize(("start", "end"), [(4, 7), (5, 7), (6.5, 8.5), (8, None), (12.05, 12.5)])
def test_the_audio_of_an_avi_is_counted_for_a_segment_as_well(avi, start, end):
    """From 5 s on the video is sought, and FFmpeg would find the audio by the false times."""
    plain, constant = avi
    whole, clip = read_clip(plain, fps=10), read_clip(constant, fps=10, start_seconds=start, end_seconds=end)
    stop = None if end is None else round(end * 16000)
    np.testing.assert_array_equal(clip.waveform, whole.waveform[round(start * 16000) : stop])
    # AVI's muxer leaves a tick out after the first frame, so the last of 12 s is over at 12.1 s.
    first = int(start * 10)
    np.testing.assert_array_equal(clip.frames, whole.frames[first : first + round(((end or 12.1) - start) * 10)])
    assert clip.notes == ()


def seconds_of(*values):
    """A second at each level."""
    return np.concatenate([level(1, value) for value in values])


STEPS = [(number + 1) / 64 for number in range(30)]


@pytest.fixture(scope="module")
def late(tmp_path_factory):
    """A video of 100 s, and audio from second 70 on whose level tells the second."""
    path = tmp_path_factory.mktemp("late") / "late.mkv"
    return write_runs(path, [(70, seconds_of(*STEPS))], seconds=100, fps=1)


@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [
        (0, None, [*[0] * 70, *STEPS]),
        (0, 300, [*[0] * 70, *STEPS]),
        (0, 72, [*[0] * 70, *STEPS[:2]]),
        (0, 10, None),
        (20, 30, None),
        (66, 73, [*[0] * 4, *STEPS[:3]]),
        (72, 75, STEPS[2:5]),
    ],
)
def test_audio_that_sets_in_late_lies_late(late, start, end, expected):
    clip = read_clip(late, start_seconds=start, end_seconds=end, fps=1)
    if expected is None:
        assert clip.waveform is None
        assert clip.notes == ("no audio in this segment",)
    else:
        np.testing.assert_array_equal(clip.waveform, seconds_of(*expected))
        assert clip.notes == ()
    assert len(clip.frames) == min(100, end or 100) - start


@pytest.mark.parametrize(("start", "end"), [(0, None), (0, 2), (2, 4), (6, 8), (9, None)])
def test_audio_that_sets_in_long_before_the_video(tmp_path, start, end):
    values = [(number + 1) / 128 for number in range(80)]
    path = write_runs(tmp_path / "early.mkv", [(0, seconds_of(*values))], seconds=10, fps=1, chunk=1000, video_from=70)
    clip = read_clip(path, start_seconds=start, end_seconds=end, fps=1)
    np.testing.assert_array_equal(clip.waveform, seconds_of(*values[70:][start:end]))
    assert clip.notes == ()


@pytest.mark.parametrize(("start", "end"), [(0, None), (2, 4), (6, 8)])
@pytest.mark.parametrize(("audio_from", "video_from", "which"), [(100000, 0, "after"), (0, 100000, "before")])
def test_clocks_that_have_nothing_to_do_with_each_other(tmp_path, audio_from, video_from, which, start, end):
    runs = [(audio_from, seconds_of(*STEPS[:12]))]
    path = write_runs(tmp_path / "apart.mkv", runs, fps=1, video_from=video_from, side_by_side=True)
    clip = read_clip(path, start_seconds=start, end_seconds=end, fps=1)
    np.testing.assert_array_equal(clip.waveform, seconds_of(*STEPS[:12][start:end]))
    assert clip.notes == (f"audio times begin 100000 s {which} the video's: taken to begin with it",)
    assert len(clip.frames) == (end or 12) - start


@pytest.fixture(scope="module")
def tail(tmp_path_factory):
    """A video of 10 s, the last frame at 9 s, and audio of 12 s."""
    return write_runs(tmp_path_factory.mktemp("tail") / "tail.mkv", [(0, seconds_of(*STEPS[:12]))], seconds=10, fps=1)


@pytest.mark.parametrize(("start", "end"), [(10, 12), (9.5, 12), (9.5, None), (11, 100)])
@pytest.mark.parametrize("fps", [4, None])
def test_the_last_frame_lasts_until_the_audio_ends(tail, tmp_path, start, end, fps):
    spool = tmp_path / "spool"
    clip = read_clip(tail, start_seconds=start, end_seconds=end, fps=fps, spool=spool)
    last = read_clip(tail, start_seconds=9, end_seconds=10, fps=1).frames[0]
    expected = 1 if fps is None else round((12 - start) * fps)
    np.testing.assert_array_equal(clip.frames, np.broadcast_to(last, (expected, *last.shape)))
    np.testing.assert_array_equal(clip.frame_times_seconds, [9] * expected)
    np.testing.assert_array_equal(clip.waveform, seconds_of(*STEPS[:12])[round(start * 16000) :])
    assert clip.notes == ()


def test_audio_after_the_video_is_a_clip_and_nothing_at_all_is_none(tail, tmp_path):
    with pytest.raises(EmptySegmentError, match="no frame at 13 s; the video ends at 12 s"):
        read_clip(tail, start_seconds=13)
    clips = [Annotation(f"from_{start}", tail.name, (), "train", start, 20.0) for start in (8.0, 10.0, 13.0)]
    dataset = prepare(clips, tail.parent, tmp_path / "dataset", PrepareConfig(fps=1.0))
    assert dataset.columns["id"].tolist() == ["from_8.0", "from_10.0"]
    assert dataset.columns["frame_count"].tolist() == [4, 2]
    np.testing.assert_allclose(dataset.audio(1) / 32767, seconds_of(*STEPS[10:12]), atol=1e-4)


def test_a_segment_after_the_audio_end_is_no_damage(tmp_path):
    write_video(tmp_path / "v.mkv", frames=numbered_frames(100, 32, 48), waveform=tone(2.0, 440), fps=10)
    clip = read_clip(tmp_path / "v.mkv", fps=10, start_seconds=7, end_seconds=9)
    assert clip.waveform is None
    assert clip.notes == ("no audio in this segment",)


@pytest.mark.parametrize("start", [6.0, 6.05, 7.2, 8.45])
def test_a_segment_begins_with_its_own_audio(tmp_path, start):
    """Packets of 64 ms lie across its start, a key frame stands at it or just before."""
    frames = np.random.default_rng(0).integers(0, 256, (120, 32, 48, 3)).astype(np.uint8)
    waveform = tone(12.0, 440)
    write_video(tmp_path / "v.mkv", frames=frames, waveform=waveform, codecs=("mpeg4", "pcm_s16le"))
    clip = read_clip(tmp_path / "v.mkv", fps=10, start_seconds=start, end_seconds=start + 1)
    whole = read_clip(tmp_path / "v.mkv", fps=10).waveform
    np.testing.assert_array_equal(clip.waveform, whole[round(start * 16000) : round((start + 1) * 16000)])
