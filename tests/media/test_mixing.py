"""Several channels to one: layouts that FFmpeg cannot mix, ambisonics, and stereo that cancels itself."""

import wave
from fractions import Fraction

import av
import numpy as np
import pytest

from avdistill.annotations import Annotation
from avdistill.media import read_clip
from avdistill.media.audio_stream import AudioTrack
from avdistill.preparation.prepare import PrepareConfig, prepare
from support.media_files import numbered_frames, tone, write_video

RATE = 16000


def tones(count):
    """(count, samples): channel n is a tone of 300 + 100 n Hz."""
    return np.stack([0.5 * np.sin(2 * np.pi * (300 + 100 * n) * np.arange(2 * RATE) / RATE) for n in range(count)])


def strength(waveform, hz):
    """Amplitude of a whole-numbered frequency in the first second."""
    return float(np.abs(np.fft.rfft(waveform[:RATE])[hz])) / (RATE / 2)


@pytest.mark.parametrize("count", [9, 11, 13, 32])
def test_channels_without_a_layout_are_averaged(tmp_path, count):
    path = tmp_path / "many.wav"
    with wave.open(str(path), "wb") as file:
        file.setnchannels(count)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes((tones(count).T * 32767).astype("<i2").tobytes())
    clip = read_clip(path)
    assert clip.notes == ()
    assert len(clip.waveform) == 2 * RATE
    np.testing.assert_allclose(clip.waveform, tones(count).mean(0), atol=1e-3)


@pytest.mark.parametrize(("order", "audio_format"), [(1, "fltp"), (1, "s16"), (2, "s16"), (3, "s16")])
def test_of_ambisonics_the_omnidirectional_channel_is_taken(order, audio_format):
    count = (order + 1) ** 2
    samples = tones(count).astype(np.float32)
    if audio_format == "s16":
        samples = (samples * 32767).astype(np.int16).T.reshape(1, -1)
    frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples), format=audio_format, layout=f"ambisonic {order}")
    frame.sample_rate, frame.pts, frame.time_base = RATE, 0, Fraction(1, RATE)
    track = AudioTrack("stream", RATE)
    track.add(frame)
    np.testing.assert_allclose(track.cut(Fraction(0), None, None), tones(1)[0], atol=1e-3)


def test_ambisonics_of_a_file(tmp_path):
    """Opus with mapping family 2, as YouTube has it for videos all around."""
    path = tmp_path / "around.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libopus", rate=48000, layout="4.0", options={"mapping_family": "255"})
        samples = np.repeat(tones(4), 3, 1).astype(np.float32)  # at 48 kHz each tone is as low as a third
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples), format="fltp", layout="4.0")
        frame.sample_rate, frame.pts = 48000, 0
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    data = bytearray(path.read_bytes())
    head = data.index(b"OpusHead")
    assert (data[head + 9], data[head + 18]) == (4, 255)
    data[head + 18] = 2
    path.write_bytes(data)
    with av.open(str(path)) as container:
        assert next(container.decode(audio=0)).layout.name == "ambisonic 1"
    clip = read_clip(path)
    assert clip.notes == ()
    assert strength(clip.waveform, 300) > 0.4
    assert max(strength(clip.waveform, hz) for hz in (400, 500, 600)) < 0.05


def write_stereo(path, left, right, codec, rate=48000):
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, layout="stereo", options={"strict": "experimental"})
        samples = np.stack([left, right]).astype(np.float32)
        for start in range(0, len(left), 1024):
            chunk = np.ascontiguousarray(samples[:, start : start + 1024])
            frame = av.AudioFrame.from_ndarray(chunk, format="fltp", layout="stereo")
            frame.sample_rate, frame.pts, frame.time_base = rate, start, Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize(
    ("suffix", "codec"),
    [
        ("wav", "pcm_s16le"),
        ("wav", "pcm_u8"),
        ("wav", "pcm_s32le"),
        ("wav", "pcm_f32le"),
        ("mkv", "aac"),
        ("mka", "flac"),
        ("mp3", "libmp3lame"),
        ("opus", "libopus"),
    ],
)
def test_stereo_out_of_phase_is_not_silent(tmp_path, suffix, codec):
    left = tone(2, 440, 48000)
    clip = read_clip(write_stereo(tmp_path / f"a.{suffix}", left, -left, codec))
    assert clip.notes == ("stereo out of phase, first channel taken",)
    assert strength(clip.waveform, 440) == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("codec", ["pcm_s16le", "pcm_u8", "aac"])
@pytest.mark.parametrize("kind", ["same", "one side", "other tones", "wide", "silence", "whisper"])
def test_other_stereo_is_mixed(tmp_path, codec, kind):
    left, other = tone(2, 440, 48000), tone(2, 880, 48000)
    sides = {
        "same": (left, left),
        "one side": (left, 0 * left),
        "other tones": (left, other),
        "wide": (left + 0.3 * other, 0.3 * other - left),
        "silence": (0 * left, 0 * left),
        "whisper": (1e-4 * left, -1e-4 * left),
    }[kind]
    clip = read_clip(write_stereo(tmp_path / "a.mkv", *sides, codec))
    assert clip.notes == ()
    assert strength(clip.waveform, 440) == pytest.approx(
        {"same": 0.5}.get(kind, 0.25) if left is sides[0] else 0, abs=0.04
    )
    assert strength(clip.waveform, 880) == pytest.approx({"other tones": 0.25, "wide": 0.15}.get(kind, 0), abs=0.04)


@pytest.mark.parametrize(("start", "end"), [(0, 2), (6.5, 8)])
def test_a_clip_out_of_phase_is_prepared_with_its_audio(tmp_path, start, end):
    video = write_video(tmp_path / "v.mkv", frames=numbered_frames(100))
    sides = tone(10, 440, RATE) * np.linspace(0.1, 1, 10 * RATE)
    audio = write_stereo(tmp_path / "a.mka", sides, -sides, "pcm_s16le", RATE)
    with (
        av.open(str(video)) as images,
        av.open(str(audio)) as samples,
        av.open(str(tmp_path / "both.mkv"), "w") as both,
    ):
        for source in (images, samples):
            stream = both.add_stream_from_template(source.streams[0])
            source.streams[0].metadata["to"] = str(stream.index)
        for source in (images, samples):
            for packet in source.demux():
                if packet.dts is not None:
                    packet.stream = both.streams[int(source.streams[0].metadata["to"])]
                    both.mux(packet)
    clips = [Annotation("clip", "both.mkv", ("a",), "train", float(start), float(end))]
    dataset = prepare(clips, tmp_path, tmp_path / "dataset", PrepareConfig(fps=4.0, short_side=32))
    assert not dataset.columns["silent"][0]
    found = dataset.audio(0) / 32767
    np.testing.assert_allclose(found, sides[round(start * RATE) : round(end * RATE)], atol=2e-3)
