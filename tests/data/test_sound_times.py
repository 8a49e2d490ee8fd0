"""Every sample lies where the file says: holes, overlaps and clocks that tremble, read whole and in segments."""

import struct
from fractions import Fraction

import av
import numpy as np
import pytest

from avdistill.data.media import EmptySegmentError, read_clip
from avdistill.data.sound_track import Sound
from media_files import numbered_frames, tone, write_video


def level(seconds, value, rate=16000):
    return np.full(round(seconds * rate), value, np.float32)


def write_runs(path, runs, *, rate=16000, seconds=12, fps=10, chunk=1024):
    """A file with a picture of so many seconds, and PCM that sets in at each time of `runs`: (seconds, samples)."""
    chunks = [
        (time + Fraction(start, rate), samples[start : start + chunk])
        for time, samples in runs
        for start in range(0, len(samples), chunk)
    ]
    items = [*chunks, *((Fraction(number, fps), image) for number, image in enumerate(numbered_frames(seconds * fps)))]
    with av.open(str(path), "w") as container:
        picture = container.add_stream("mpeg4", rate=fps)
        picture.height, picture.width, picture.pix_fmt = 48, 64, "yuv420p"
        sound = container.add_stream("pcm_s16le", rate=rate, layout="mono")
        for time, item in sorted(items, key=lambda item: item[0]):
            if item.ndim == 3:
                frame, stream = av.VideoFrame.from_ndarray(item, format="rgb24"), picture
            else:
                samples = np.round(item * 32768).astype(np.int16)[None]
                frame, stream = av.AudioFrame.from_ndarray(samples, format="s16", layout="mono"), sound
                frame.sample_rate = rate
            frame.time_base = Fraction(1, fps if item.ndim == 3 else rate)
            frame.pts = round(time / frame.time_base)
            container.mux(stream.encode(frame))
        container.mux(picture.encode(None))
        container.mux(sound.encode(None))
    return path


@pytest.fixture(scope="module")
def holed(tmp_path_factory):
    """0.125 for 2 s, nothing for 4 s, 0.5 for 2 s, nothing for 2 s, 0.25 for 2 s; exact in 16 bits."""
    runs = [(0, level(2, 0.125)), (6, level(2, 0.5)), (10, level(2, 0.25))]
    return write_runs(tmp_path_factory.mktemp("sound") / "holed.mkv", runs)


HOLED = np.concatenate([level(2, 0.125), level(4, 0), level(2, 0.5), level(2, 0), level(2, 0.25)])


def filled(seconds):
    return f"{seconds} s of sound missing, filled with silence"


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
        # the sound has set in before it cannot know.
        (5.5, 8, ()),
        (6, 8, ()),
        (7, 9, (filled(1),)),
        (7.5, 11, (filled(2),)),
        (8.5, None, ()),
    ],
)
def test_a_segment_is_that_part_of_the_whole(holed, start, end, notes):
    clip = read_clip(holed, start_seconds=start, end_seconds=end)
    stop = None if end is None else round(end * 16000)
    np.testing.assert_array_equal(clip.waveform, HOLED[round(start * 16000) : stop])
    assert clip.notes == notes


@pytest.mark.parametrize(("start", "end"), [(2, 5), (3, 4), (5.2, 5.8), (8, 10), (8.5, 9)])
def test_a_segment_in_a_hole_has_no_sound(holed, start, end):
    clip = read_clip(holed, start_seconds=start, end_seconds=end)
    assert clip.waveform is None
    assert clip.notes == ("no sound in this segment",)
    assert len(clip.frames) == np.ceil((end - start) * 4)


def test_a_hole_in_sound_alone(tmp_path):
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
    with pytest.raises(EmptySegmentError, match=r"no sound from 1\.5 s to 2\.5 s"):
        read_clip(path, start_seconds=1.5, end_seconds=2.5)


def test_a_hole_in_resampled_sound(tmp_path):
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
    assert float(note.removesuffix(" s of sound missing, filled with silence")) == pytest.approx(1, abs=0.13)
    assert not clip.waveform[18000:31000].any()
    for part in (slice(0, 15000), slice(34000, None)):  # a packet decodes with the one before it
        np.testing.assert_allclose(clip.waveform[part], expected[part], atol=1e-3)


def test_a_hole_too_long_to_be_one_ends_the_sound(tmp_path):
    runs = [(0, level(3, 0.125)), (70, level(3, 0.5))]
    path = write_runs(tmp_path / "jump.mkv", runs, seconds=75, fps=2)
    clip = read_clip(path)
    np.testing.assert_array_equal(clip.waveform, level(3, 0.125))
    assert clip.notes == ("sound times jump by 67 s",)
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


def test_of_sound_that_overlaps_the_first_stays(tmp_path):
    """Packets of a second, the second one 0.4 s too early, the last one 0.03 s: that is no more than a tremble."""
    runs = [(0, level(1, 0.125)), (0.6, level(1, 0.5)), (1.6, level(1, 0.25)), (2.57, level(1, 0.75))]
    clip = read_clip(write_runs(tmp_path / "overlap.mkv", runs, seconds=4, chunk=16000))
    expected = np.concatenate([level(1, 0.125), level(0.6, 0.5), level(1, 0.25), level(1, 0.75)])
    np.testing.assert_array_equal(clip.waveform, expected)
    assert clip.notes == ("0.4 s of sound dropped, it overlaps",)


def test_a_clock_that_begins_again(tmp_path):
    """Two recordings in one file: of the second is taken what lies after the end of the first."""
    first = write_video(tmp_path / "a.ts", frames=None, waveform=tone(2.0, 440), codecs=("", "mp2"))
    second = write_video(tmp_path / "b.ts", frames=None, waveform=tone(3.0, 1000), codecs=("", "mp2"))
    (tmp_path / "both.ts").write_bytes(first.read_bytes() + second.read_bytes())
    clip = read_clip(tmp_path / "both.ts")
    assert len(clip.waveform) / 16000 == pytest.approx(3, abs=0.1)
    (note,) = clip.notes
    assert float(note.removesuffix(" s of sound dropped, it overlaps")) == pytest.approx(2, abs=0.1)
    for part, hz in ((clip.waveform[:30000], 440), (clip.waveform[36000:46000], 1000)):
        assert np.argmax(np.abs(np.fft.rfft(part))) * 16000 / len(part) == pytest.approx(hz, abs=2)


def test_frames_that_tell_no_time_lie_before_the_first_that_does():
    sound = Sound("stream.ogg", 16000)
    for pts in (None, None, 80000, 96000):
        frame = av.AudioFrame.from_ndarray(np.full((1, 16000), 4096, np.int16), format="s16", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = 16000, pts, Fraction(1, 16000)
        sound.add(frame)
    assert sound.first == 3
    np.testing.assert_array_equal(sound.cut(Fraction(0), None, Fraction(0)), [*level(3, 0), *level(4, 0.125)])
    assert sound.notes == []


def test_the_sound_of_an_avi_is_counted(tmp_path):
    """MP3 of varying rate in a header for a constant one: what passes for times of its packets is off by seconds."""
    waveform = np.concatenate([tone(6.0, 440), np.zeros(6 * 16000)])
    path = tmp_path / "plain.avi"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mp3", rate=16000, layout="mono", options={"flags": "+qscale"})
        for start in range(0, len(waveform), 576):
            samples = waveform[None, start : start + 576].astype(np.float32)
            frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = 16000, start, Fraction(1, 16000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with av.open(str(path)) as container:
        sizes = [packet.size for packet in container.demux()]
    assert max(sizes[2:-2]) > 1.5 * min(sizes[2:-2])
    data = bytearray(path.read_bytes())
    header, form, mean = data.find(b"auds"), data.find(b"strf") + 8, sum(sizes) // 12
    struct.pack_into("<2I", data, header + 20, 1, mean)  # bytes a second, in samples of one byte
    struct.pack_into("<I", data, header + 44, 1)
    struct.pack_into("<IH", data, form + 8, mean, 1)
    (tmp_path / "constant.avi").write_bytes(data)
    with av.open(str(tmp_path / "constant.avi")) as container:
        times = np.array([frame.time for frame in container.decode(audio=0)])
    assert np.abs(times - np.arange(len(times)) * 576 / 16000).max() > 1
    clip = read_clip(tmp_path / "constant.avi")
    assert clip.notes == ()
    np.testing.assert_array_equal(clip.waveform, read_clip(path).waveform)
