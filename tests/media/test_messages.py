"""Notes and errors: nothing of FFmpeg's numbers, the path once, no complaint about files without a fault."""

import av
import numpy as np
import pytest

from avdistill.errors import UnreadableFileError
from avdistill.media import read_clip
from support.media_files import numbered_frames, tone, write_timed, write_video


@pytest.mark.parametrize("content", [b"", b"not a video " * 100, b"junk" * 300])
def test_an_error_names_the_file_once_and_no_number(tmp_path, content):
    path = tmp_path / "words.mp3"
    path.write_bytes(content)
    with pytest.raises(UnreadableFileError) as error:
        read_clip(path)
    assert str(error.value).count("words.mp3") == 1
    assert not any(sign.isdigit() for sign in str(error.value).removeprefix(str(path)).replace("mp3", ""))
    assert "[" not in str(error.value).removeprefix(str(path))


def test_a_file_that_breaks_off_says_why_in_words(tmp_path):
    path = write_video(tmp_path / "a.mkv", frames=numbered_frames(30), waveform=tone(3, 440))
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    notes = read_clip(path).notes
    assert not any("[" in note or "a.mkv" in note for note in notes)


def test_of_several_jumps_the_first_is_noted(tmp_path):
    """All of them in the frames that the decoder holds back to the end."""
    path = write_timed(tmp_path / "a.mkv", [0, 1, 5000, 12000, 30000], codec="libx264")
    assert read_clip(path).notes == ("frame times jump by 4999 s",)


def tagged(kind, data):
    """Clean audio with what tools put around it."""
    return {
        "plain": data,
        "zeros after": data + bytes(3000),
        "id3v2 after": data + b"ID3\x04\0\0\0\0\x08\0" + bytes(1024),
        "lyrics": data + b"LYRICSBEGIN" + b"abc" * 300 + b"LYRICS200" + b"TAG" + b"x" * 125,
        "ape": data + b"APETAGEX" + bytes(24) + b"APETAGEX" + bytes(24),
        "zeros before": bytes(1500) + data,
        "cut at the start": data[700:],
        "cut at the end": data[:-300],
    }[kind]


@pytest.mark.parametrize(("suffix", "codec"), [("mp3", "libmp3lame"), ("ac3", "ac3"), ("eac3", "eac3")])
@pytest.mark.parametrize(
    "kind",
    ["plain", "zeros after", "id3v2 after", "lyrics", "ape", "zeros before", "cut at the start", "cut at the end"],
)
def test_clean_audio_is_not_called_damaged(tmp_path, suffix, codec, kind):
    part = tmp_path / f"part.{suffix}"
    write_video(part, frames=None, waveform=tone(2, 440, 48000), sample_rate=48000, codecs=("", codec))
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(tagged(kind, part.read_bytes()))
    clip = read_clip(path)
    assert clip.notes == ()
    assert len(clip.waveform) / 16000 == pytest.approx(2, abs=0.12)


def test_audio_damaged_at_its_end_for_longer_is(tmp_path):
    path = write_video(tmp_path / "a.mkv", frames=None, waveform=tone(3, 440), codecs=("", "aac"))
    with av.open(str(path)) as container:
        packets = [(packet.pos, packet.size) for packet in container.demux(audio=0) if packet.size]
    data = bytearray(path.read_bytes())
    for position, size in packets[-20:]:
        block = data.index(bytes(data[position + 4 : position + 12]), position)  # the block's head is short
        data[block : block + size - 8] = b"\xff" * (size - 8)
    path.write_bytes(data)
    assert any("damaged audio" in note for note in read_clip(path).notes)
    assert np.abs(read_clip(path).waveform[:16000]).max() > 0.4
