"""Recordings joined into one file, whose clock begins again: all of it is read, in order, audio and video in step."""

import av
import numpy as np
import pytest

from avdistill.media import read_clip
from avdistill.media.clock import ContinuousClock
from support.media_files import tone, write_video

SECONDS = 3
# By suffix: frames per second, codecs of video and audio, sample rate.
KINDS = {
    "ts": (10, ("mpeg2video", "mp2"), 44100),
    "m2ts": (10, ("libx264", "ac3"), 48000),
    "mpg": (25, ("mpeg2video", "mp2"), 44100),
    "vob": (25, ("mpeg2video", "ac3"), 48000),
    "mkv": (10, ("mpeg4", "aac"), 44100),
    "webm": (10, ("libvpx", "libopus"), 48000),
}


def levels(fps, parts=2):
    """Brightness of the frames of each part: up, down, up ..."""
    one = np.linspace(30, 220, SECONDS * fps)
    return [one[:: -1 if part % 2 else 1] for part in range(parts)]


def write_joined(path, *, fps=10, codecs=("mpeg2video", "mp2"), rate=44100, parts=2, offsets=(0, 0, 0), audio=True):
    """Files one after the other, as `cat` joins them, each with a tone of its own."""
    data = b""
    for part, brightness in enumerate(levels(fps, parts)):
        frames = np.broadcast_to(brightness.astype(np.uint8)[:, None, None, None], (len(brightness), 48, 64, 3))
        write_video(
            path.with_stem("part"),
            frames=np.ascontiguousarray(frames),
            fps=fps,
            waveform=tone(SECONDS, 440 * (part + 1), rate) if audio else None,
            sample_rate=rate,
            codecs=codecs,
            options={"output_ts_offset": str(offsets[part])},
        )
        data += path.with_stem("part").read_bytes()
    path.write_bytes(data)
    return path


def tone_at(clip, second):
    part = clip.waveform[int((second - 0.25) * 16000) : int((second + 0.25) * 16000)]
    return 2 * np.argmax(np.abs(np.fft.rfft(part)))


def check(clip, fps, parts=2, *, program_stream=False):
    """Every frame in order, and in the middle of each part its tone."""
    expected = np.concatenate(levels(fps, parts))
    np.testing.assert_allclose(clip.frames.mean((1, 2, 3)), expected, atol=6)
    steps = np.diff(clip.frame_times_seconds)
    assert (steps >= 0).all() if program_stream else (steps > 0).all()  # FFmpeg gives some frames of these no time
    assert clip.frame_times_seconds[-1] == pytest.approx(parts * SECONDS, abs=0.35)
    if clip.waveform is not None:
        middles = [clip.frame_times_seconds[round((part + 0.5) * SECONDS * fps)] for part in range(parts)]
        assert [tone_at(clip, time) for time in middles] == [440 * (part + 1) for part in range(parts)]


@pytest.mark.parametrize("suffix", KINDS)
def test_the_whole_of_a_joined_file_in_order(tmp_path, suffix):
    fps, codecs, rate = KINDS[suffix]
    path = write_joined(tmp_path / f"both.{suffix}", fps=fps, codecs=codecs, rate=rate)
    clip = read_clip(path, fps=None)
    check(clip, fps, program_stream=fps == 25)
    assert [note[:16] for note in clip.notes if "begin again" in note] == ["times begin agai"]
    # At a rate as well: the number of frames is the time, but for what FFmpeg loses of an MPEG stream's first times.
    at_rate = read_clip(path, fps=5).frames.mean((1, 2, 3))
    halves = np.concatenate([np.linspace(30, 220, SECONDS * 5), np.linspace(220, 30, SECONDS * 5)])
    assert len(at_rate) == pytest.approx(len(halves), abs=3)
    assert at_rate.argmax() == pytest.approx(len(at_rate) / 2, abs=2)


@pytest.mark.parametrize("audio", [True, False])
@pytest.mark.parametrize("offsets", [(0, 0, 0), (500, 0, 5000), (0, 5000, 20000), (7000, 3, 90000)])
def test_three_parts_with_clocks_of_their_own(tmp_path, offsets, audio):
    path = write_joined(tmp_path / "three.ts", parts=3, offsets=offsets, audio=audio)
    clip = read_clip(path, fps=None)
    check(clip, 10, parts=3)
    assert any(note.endswith(" s after the start, 2 times in all: read on from there") for note in clip.notes)


@pytest.mark.parametrize(("start", "end"), [(2, 4), (5, 7), (5.5, None), (7, 9)])
def test_a_segment_of_a_joined_file_is_that_part_of_the_whole(tmp_path, start, end):
    path = write_joined(tmp_path / "three.ts", parts=3)
    whole = read_clip(path, fps=10)
    clip = read_clip(path, fps=10, start_seconds=start, end_seconds=end)
    stop = len(whole.frames) if end is None else round(end * 10)
    np.testing.assert_array_equal(clip.frames, whole.frames[round(start * 10) : stop])
    audio = whole.waveform[round(start * 16000) : None if end is None else round(end * 16000)]
    assert len(clip.waveform) == pytest.approx(len(audio), abs=800)
    assert tone_at(clip, 0.5) == tone_at(whole, start + 0.5)


@pytest.mark.parametrize(("suffix", "codec"), [("opus", "libopus"), ("oga", "flac"), ("ts", "mp2")])
def test_chained_audio(tmp_path, suffix, codec):
    data = b""
    for hz, seconds in ((440, 2), (880, 3), (1320, 1)):
        part = tmp_path / f"part.{suffix}"
        write_video(part, frames=None, waveform=tone(seconds, hz, 48000), sample_rate=48000, codecs=("", codec))
        data += part.read_bytes()
    path = tmp_path / f"chained.{suffix}"
    path.write_bytes(data)
    clip = read_clip(path)
    assert len(clip.waveform) / 16000 == pytest.approx(6, abs=0.15)
    assert [tone_at(clip, time) for time in (1, 3.5, 5.5)] == [440, 880, 1320]


@pytest.mark.parametrize("seconds", [-1.7, 2.5, 200, 1000])
@pytest.mark.parametrize("kind", ["video", "audio"])
def test_one_packet_with_a_wrong_time_begins_no_clock(tmp_path, seconds, kind):
    path = write_joined(tmp_path / "one.ts", parts=1)
    with av.open(str(path)) as container:
        streams = container.streams.get(video=0, audio=0)
        clock = ContinuousClock(streams, may_jump=True)
        before, after = [], []
        for number, packet in enumerate(container.demux(*streams)):
            if packet.dts is None:
                continue
            times = packet.dts, packet.pts
            if packet.stream.type == kind and 30 < number < 60 and not any(wrong for _, wrong in before):
                packet.dts, packet.pts = (time + round(seconds * 90000) for time in times)
                before.append((times, True))
            else:
                before.append((times, False))
            clock.place(packet)
            after.append((packet.dts, packet.pts))
    assert sum(wrong for _, wrong in before) == 1
    assert clock.joints == 0
    assert [a for a, (_, wrong) in zip(after, before, strict=True) if not wrong] == [
        t for t, wrong in before if not wrong
    ]
