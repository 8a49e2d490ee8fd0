"""Which stream is read: the container's default, the first otherwise; one that cannot be decoded costs only itself."""

import av
import numpy as np
import pytest

from avdistill.errors import UnreadableFileError
from avdistill.media import read_clip
from support.media_files import numbered_frames, tone, write_video

FRAMES = numbered_frames(10)


def write_streams(path, defaults, *, kind):
    """Several streams of a kind beside one of the other; stream n is n + 1 times as bright, or as high."""
    with av.open(str(path), "w") as container:
        videos, audios = [], []
        for number in range(len(defaults) if kind == "video" else 1):
            video = container.add_stream("mpeg4", rate=10)
            video.height, video.width, video.pix_fmt = 48, 64, "yuv420p"
            videos.append((number, video))
        for number in range(len(defaults) if kind == "audio" else 1):
            audios.append((number, container.add_stream("aac", rate=16000, layout="mono")))
        for (_, stream), default in zip(videos if kind == "video" else audios, defaults, strict=True):
            stream.disposition = av.stream.Disposition.default if default else av.stream.Disposition(0)
        for number, video in videos:
            for time in range(10):
                image = np.full((48, 64, 3), 60 * (number + 1), np.uint8)
                frame = av.VideoFrame.from_ndarray(image, format="rgb24")
                frame.pts = time
                container.mux(video.encode(frame))
            container.mux(video.encode(None))
        for number, audio in audios:
            samples = tone(1, 400 * (number + 1))[None].astype(np.float32)
            frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
            frame.sample_rate, frame.pts = 16000, 0
            container.mux(audio.encode(frame))
            container.mux(audio.encode(None))
    return path


@pytest.mark.parametrize("suffix", ["mkv", "mp4", "mov"])
@pytest.mark.parametrize(
    ("defaults", "chosen", "which"),
    [
        ([False, True], 1, "default (2)"),
        ([False, False, True], 2, "default (3)"),
        ([True, False], 0, "first"),
        ([True, True], 0, "first"),
    ],
)
@pytest.mark.parametrize("kind", ["video", "audio"])
def test_the_default_stream_is_read(tmp_path, suffix, defaults, chosen, which, kind):
    path = write_streams(tmp_path / f"a.{suffix}", defaults, kind=kind)
    with av.open(str(path)) as container:  # the oracle: the file is as it is called, and FFmpeg chooses alike
        streams = [stream for stream in container.streams if stream.type == kind]
        assert [bool(stream.disposition & av.stream.Disposition.default) for stream in streams] == defaults
        if sum(defaults) == 1:
            assert container.streams.best(kind).index == streams[chosen].index
    clip = read_clip(path)
    assert clip.frames.mean() == pytest.approx(60 * (chosen + 1 if kind == "video" else 1), abs=4)
    spectrum = np.abs(np.fft.rfft(clip.waveform[1000:15000]))
    assert np.argmax(spectrum) * 16000 / 14000 == pytest.approx(400 * (chosen + 1 if kind == "audio" else 1), abs=2)
    assert clip.notes == (f"{len(defaults)} {kind} streams, {which} taken",)


@pytest.mark.parametrize(("suffix", "codec", "name"), [("mp4", "libx264", b"avc1"), ("mkv", "libx264", b"ISO/AVC")])
@pytest.mark.parametrize("seconds", [3, 7])
def test_video_of_an_unknown_codec_does_not_cost_the_audio(tmp_path, suffix, codec, name, seconds):
    waveform = tone(seconds, 440)
    path = write_video(
        tmp_path / f"a.{suffix}", frames=numbered_frames(10 * seconds), waveform=waveform, codecs=(codec, "aac")
    )
    path.write_bytes(path.read_bytes().replace(name, b"z" * len(name)))
    start = seconds - 2
    for clip, expected in ((read_clip(path), seconds), (read_clip(path, start_seconds=start), 2)):
        assert clip.frames is None
        assert clip.notes == ("video stream cannot be decoded",)
        assert len(clip.waveform) / 16000 == pytest.approx(expected, abs=0.07)
        assert np.abs(clip.waveform).max() == pytest.approx(0.5, abs=0.1)
    silent = write_video(tmp_path / f"silent.{suffix}", frames=FRAMES, codecs=(codec, "aac"))
    silent.write_bytes(silent.read_bytes().replace(name, b"z" * len(name)))
    with pytest.raises(UnreadableFileError, match="the video stream cannot be decoded"):
        read_clip(silent)


def test_video_whose_every_packet_is_damaged_does_not_cost_the_audio(tmp_path):
    frames = np.random.default_rng(0).integers(0, 255, (30, 48, 64, 3)).astype(np.uint8)
    path = write_video(tmp_path / "a.mp4", frames=frames, waveform=tone(3, 440), codecs=("libx264", "aac"))
    data = bytearray(path.read_bytes())
    with av.open(str(path)) as container:
        for packet in container.demux(video=0):
            if packet.pos is not None:
                data[packet.pos : packet.pos + packet.size] = b"\xff" * packet.size
    path.write_bytes(data)
    clip = read_clip(path)
    assert clip.frames is None
    assert "video stream cannot be decoded" in clip.notes
    assert len(clip.waveform) / 16000 == pytest.approx(3, abs=0.07)


def test_a_video_stream_without_a_packet_does_not_cost_the_audio(tmp_path):
    path = tmp_path / "a.ts"
    with av.open(str(path), "w") as container:
        video = container.add_stream("mpeg2video", rate=25)
        video.height, video.width, video.pix_fmt = 48, 64, "yuv420p"
        audio = container.add_stream("ac3", rate=48000, layout="mono")
        samples = tone(2, 440, 48000)[None].astype(np.float32)
        frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
        frame.sample_rate, frame.pts = 48000, 0
        container.mux(audio.encode(frame))
        container.mux(audio.encode(None))
    clip = read_clip(path)
    assert clip.frames is None
    assert clip.notes == ("video stream cannot be decoded",)
    assert len(clip.waveform) / 16000 == pytest.approx(2, abs=0.07)
