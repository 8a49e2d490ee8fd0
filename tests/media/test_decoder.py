"""Reading real files: the frame rule, audio, every kind of oddity a file has."""

import itertools
import math
import os
import subprocess
import sys
from fractions import Fraction

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import avdistill.media
from avdistill.errors import EmptySegmentError, MediaError, NoStreamError, UnreadableFileError
from avdistill.media import decoder, read_clip
from support.media_files import numbered_frames, tone, write_timed, write_video


def brightness(frames):
    return frames.mean((1, 2, 3))


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    path = tmp_path_factory.mktemp("media") / "plain.mp4"
    return write_video(path, frames=numbered_frames(40), fps=10, waveform=tone(4.0, 440))


def test_takes_the_frame_that_is_shown_at_each_time(plain):
    every = read_clip(plain, fps=None)
    assert every.frames.shape == (40, 48, 64, 3)
    clip = read_clip(plain, fps=4)
    # k / 4 s lies at frames 0, 2.5, 5, 7.5, ... of a 10 fps file: the last frame that is not later.
    expected = [int(np.floor(k * 2.5)) for k in range(16)]
    np.testing.assert_allclose(clip.frame_times_seconds, np.array(expected) / 10)
    assert (clip.frames == every.frames[expected]).all()


@settings(max_examples=20, deadline=None)
@given(fps=st.sampled_from([1.0, 3.0, 4.0, 7.5, 10.0, 12.5, 25.0]), start=st.integers(0, 35), length=st.integers(1, 50))
def test_segment_is_half_open_and_follows_the_rule(plain, fps, start, length):
    clip = read_clip(plain, fps=fps, start_seconds=start / 10, end_seconds=(start + length) / 10)
    step, times = 1 / Fraction(fps), []
    time, end = Fraction(start, 10), min(Fraction(start + length, 10), 4)
    while time < end:
        times.append(float(Fraction(math.floor(time * 10), 10)))
        time += step
    np.testing.assert_allclose(clip.frame_times_seconds, times)


def test_audio_of_a_segment_is_the_audio_at_that_time(tmp_path):
    waveform = np.concatenate([np.zeros(32000), tone(1.0, 440), np.zeros(16000)])
    path = write_video(tmp_path / "late.mp4", frames=numbered_frames(40), waveform=waveform)
    clip = read_clip(path, start_seconds=1.5, end_seconds=3.5)
    assert abs(len(clip.waveform) - 32000) <= 1
    loud = np.flatnonzero(np.abs(clip.waveform) > 0.1)
    assert loud[0] == pytest.approx(8000, abs=300)
    assert loud[-1] == pytest.approx(24000, abs=1300)


def test_far_segments_equal_the_same_part_of_the_whole(tmp_path):
    path = write_video(tmp_path / "long.mp4", frames=numbered_frames(120), waveform=tone(12.0, 300))
    whole = read_clip(path, fps=10)
    part = read_clip(path, fps=10, start_seconds=8.0, end_seconds=9.0)
    assert (part.frames == whole.frames[80:90]).all()
    inside = slice(2000, 14000)  # away from the resampler's and the codec's edges
    np.testing.assert_allclose(part.waveform[inside], whole.waveform[128000:144000][inside], atol=1e-3)


@pytest.mark.parametrize("suffix", ["avi", "mkv", "mov", "mp4"])
def test_containers(tmp_path, suffix):
    path = write_video(
        tmp_path / f"clip.{suffix}",
        frames=numbered_frames(20),
        waveform=tone(2.0, 440),
        codecs=("mpeg4", "mp3" if suffix == "avi" else "aac"),
    )
    clip = read_clip(path, fps=None)  # AVI's muxer leaves a tick out after the first frame: a rate would repeat it
    assert len(clip.frames) == 20
    assert abs(len(clip.waveform) - 32000) <= 1600
    assert np.corrcoef(brightness(clip.frames), np.arange(20))[0, 1] > 0.999


def test_audio_that_is_no_number_is_silence_or_full_scale(tmp_path):
    samples = tone(1.0, 440).astype(np.float32)
    samples[[100, 5000, 9000]] = np.nan, np.inf, -np.inf
    path = tmp_path / "odd.wav"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_f32le", rate=16000, layout="mono")
        frame = av.AudioFrame.from_ndarray(samples[None], format="flt", layout="mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
    waveform = read_clip(path).waveform
    assert waveform[[100, 5000, 9000]].tolist() == [0, 1, -1]
    fine = np.isfinite(samples)
    np.testing.assert_array_equal(waveform[fine], samples[fine])


def test_scaling_and_region(tmp_path):
    frames = np.zeros((3, 48, 96, 3), np.uint8)
    frames[:, :24, 48:] = (250, 30, 30)
    path = write_video(tmp_path / "corner.mp4", frames=frames)
    assert read_clip(path, short_side=24).frames.shape[1:] == (24, 48, 3)
    assert read_clip(path, size=(30, 20)).frames.shape[1:] == (30, 20, 3)
    red = read_clip(path, region=(48, 0, 48, 24)).frames
    assert red.shape[1:] == (24, 48, 3)
    assert red[..., 0].mean() > 200
    assert red[..., 1].mean() < 80  # red, not blue: the channels are in RGB order
    assert read_clip(path, region=(0, 24, 48, 24)).frames.mean() < 20
    with pytest.raises(MediaError, match="beyond the video of 96x48"):
        read_clip(path, region=(60, 0, 48, 24))


def test_no_audio_no_video_no_anything(tmp_path):
    silent = read_clip(write_video(tmp_path / "silent.mp4", frames=numbered_frames(5)))
    assert silent.waveform is None
    heard = read_clip(write_video(tmp_path / "heard.m4a", frames=None, waveform=tone(1.0, 440)))
    assert heard.frames is None
    assert abs(len(heard.waveform) - 16000) <= 1100
    with pytest.raises(FileNotFoundError):
        read_clip(tmp_path / "absent.mp4")
    (tmp_path / "words.mp4").write_text("not a video " * 100)
    with pytest.raises(UnreadableFileError, match=r"words\.mp4"):
        read_clip(tmp_path / "words.mp4")
    (tmp_path / "empty.mp4").touch()
    with pytest.raises(UnreadableFileError):
        read_clip(tmp_path / "empty.mp4")
    (tmp_path / "titles.srt").write_text("1\n00:00:00,000 --> 00:00:01,000\nhello\n")
    with pytest.raises(NoStreamError):
        read_clip(tmp_path / "titles.srt")


def test_several_streams_and_surround_audio(tmp_path):
    path = tmp_path / "two.mkv"
    write_video(path, frames=numbered_frames(10), waveform=tone(1.0, 440), audio_streams=2)
    assert "2 audio streams, first taken" in read_clip(path).notes
    surround = write_video(tmp_path / "surround.mp4", frames=None, waveform=tone(1.0, 440), layout="5.1")
    waveform = read_clip(surround).waveform
    assert waveform.ndim == 1
    spectrum = np.abs(np.fft.rfft(waveform[2000:14000]))
    assert np.argmax(spectrum) * 16000 / 12000 == pytest.approx(440, abs=2)


def test_a_slide_show_is_filled_and_a_jump_of_the_clock_ends_the_video(tmp_path):
    path = write_timed(tmp_path / "slides.mkv", [0, 0.1, 50, 210, 210.1, 4000, 4000.1, 9000])
    clip = read_clip(path, fps=1)
    assert clip.notes == ("frame times jump by 3790 s",)  # the first of two
    np.testing.assert_allclose(clip.frame_times_seconds, [0, *[0.1] * 49, *[50] * 160, 210])
    np.testing.assert_allclose(read_clip(path, fps=None).frame_times_seconds, [0, 0.1, 50, 210, 210.1])
    # A segment that begins after the jump is not met by it.
    np.testing.assert_allclose(read_clip(path, fps=None, start_seconds=4000).frame_times_seconds, [4000, 4000.1])


def test_segment_beyond_the_end(plain):
    with pytest.raises(EmptySegmentError, match="ends at 4 s"):
        read_clip(plain, start_seconds=7)


def test_truncated_file_gives_what_is_there_and_says_so(tmp_path):
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 255, (30, 48, 64, 3)).astype(np.uint8)
    path = write_video(tmp_path / "whole.mkv", frames=noise, waveform=tone(3.0, 440))
    data = path.read_bytes()
    (tmp_path / "half.mkv").write_bytes(data[: len(data) // 2])
    clip = read_clip(tmp_path / "half.mkv", fps=10)
    assert 5 <= len(clip.frames) < 30
    whole = read_clip(path, fps=10)
    assert (clip.frames[:5] == whole.frames[:5]).all()


def test_frames_still_in_the_decoder_where_a_file_breaks_off_keep_their_times(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (30, 48, 64, 3)).astype(np.uint8)
    path = write_video(tmp_path / "clip.mkv", frames=noise, codecs=("libx264", "aac"))

    class Breaking:
        def demux(self, *streams):
            yield from itertools.islice(container.demux(*streams), 20)
            raise av.error.InvalidDataError(1, "Invalid data")

    notes = []
    with av.open(str(path)) as container:
        packets = decoder._packets(Breaking(), list(container.streams.video), notes)
        times = [frame.time for packet in packets for frame in packet.decode()]
    assert notes == ["file breaks off: Invalid data"]
    assert len(times) == 20
    assert set(np.round(np.multiply(times, 10)).astype(int)) <= set(range(30))
    assert (np.diff(times) > 0.05).all()


def test_frames_still_in_the_decoder_at_the_end_of_a_file_whose_audio_is_its_first_stream(tmp_path):
    path = tmp_path / "audio_first.mkv"
    noise = np.random.default_rng(0).integers(0, 255, (30, 48, 64, 3)).astype(np.uint8)
    with av.open(str(path), "w") as container:
        audio = container.add_stream("pcm_s16le", rate=16000, layout="mono")
        video = container.add_stream("libx264", rate=10)
        video.height, video.width, video.pix_fmt = 48, 64, "yuv420p"
        for number, image in enumerate(noise):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 10)
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        frame = av.AudioFrame.from_ndarray(np.full((1, 48000), 4096, np.int16), format="s16", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = 16000, 0, Fraction(1, 16000)
        container.mux(audio.encode(frame))
    clip = read_clip(path, fps=10)
    np.testing.assert_allclose(clip.frame_times_seconds, np.arange(30) / 10)
    np.testing.assert_array_equal(clip.waveform, np.full(48000, 0.125, np.float32))


def test_damaged_packets_are_counted(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (30, 48, 64, 3)).astype(np.uint8)
    path = write_video(tmp_path / "clip.mp4", frames=noise, codecs=("libx264", "aac"))
    with av.open(str(path)) as container:
        fifth = [packet.pos for packet in container.demux() if packet.pos is not None][4]
    data = bytearray(path.read_bytes())
    data[fifth : fifth + 4] = b"\xff" * 4  # the length of the packet's first unit
    (tmp_path / "damaged.mp4").write_bytes(data)
    clip = read_clip(tmp_path / "damaged.mp4", fps=10)
    assert 10 < len(clip.frames) <= 30
    assert any("damaged video" in note for note in clip.notes)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"fps": 0}, "fps"),
        ({"start_seconds": -1}, "start_seconds"),
        ({"start_seconds": 2, "end_seconds": 2}, "end_seconds"),
        ({"short_side": 10, "size": (10, 10)}, "not both"),
        ({"short_side": 0}, "pixel"),
        ({"region": (0, 0, 0, 5)}, "region"),
        ({"sample_rate_hz": 0}, "sample_rate_hz"),
    ],
)
def test_contradictory_arguments(plain, arguments, message):
    with pytest.raises(ValueError, match=message):
        read_clip(plain, **arguments)


def test_the_room_exports_read_clip_and_loads_ffmpeg_on_first_use(plain):
    code = "import sys, avdistill.media; sys.exit('av' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)})
    assert avdistill.media.read_clip is read_clip
    with pytest.raises(AttributeError, match="no attribute 'read'"):
        avdistill.media.read  # noqa: B018


def test_a_path_may_be_text_and_the_sample_rate_is_named(plain):
    text, path = (read_clip(each, sample_rate_hz=8000) for each in (str(plain), plain))
    assert text.sample_rate_hz == 8000
    assert np.array_equal(text.frames, path.frames)
    assert np.array_equal(text.waveform, path.waveform)
