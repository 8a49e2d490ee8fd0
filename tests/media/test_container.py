"""A media file is read alone: playlists, patterns and text that lead to other files are refused under any name."""

from pathlib import Path

import av
import numpy as np
import pytest

from avdistill.errors import UnreadableFileError
from avdistill.media import read_clip
from avdistill.media.container import FORMATS
from support.media_files import write_video

DASH = """<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static"
 profiles="urn:mpeg:dash:profile:isoff-on-demand:2011" mediaPresentationDuration="PT2S" minBufferTime="PT1S"><Period>
 <AdaptationSet mimeType="video/mp4"><Representation id="1" bandwidth="1000" width="32" height="32">
 <BaseURL>other.mp4</BaseURL></Representation></AdaptationSet></Period></MPD>"""
SDP = "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\na=rtpmap:96 H264/90000\n"
ANSI = "\x1b[31mroot:x:0:0:root:/root:/bin/sh\x1b[0m\n" * 50
PLAYLISTS = {
    "concat.avi": "ffconcat version 1.0\nfile other.mp4\n",
    "concat_absolute.mkv": "ffconcat version 1.0\nfile {folder}/other.mp4\n",
    "concat_url.mp4": "ffconcat version 1.0\nfile file:{folder}/other.mp4\n",
    "list.m3u8": "#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2.0,\nother.ts\n#EXT-X-ENDLIST\n",
    "list.avi": "#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2.0,\nother.ts\n#EXT-X-ENDLIST\n",
    "list.mpd": DASH,
    "list.webm": DASH,
    "stream.sdp": SDP,
    "stream.avi": SDP,
    "art.ans": ANSI,
    "art.nfo": ANSI,
    "art.avi": ANSI,
    "notes.txt": "the password is swordfish\n" * 100,
    "drawing.svg": '<svg xmlns="http://www.w3.org/2000/svg"><image href="other.png"/></svg>',
    "tags.mp4": ";FFMETADATA1\ntitle=x\n",
    "beats.sbg": "base: 200+10/50\nNOW base\n+00:01:00 base\n",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with videos that the playlists name."""
    folder = tmp_path_factory.mktemp("videos")
    white = np.full((10, 32, 32, 3), 255, np.uint8)
    for name in ("other.mp4", "other.ts"):
        write_video(folder / name, frames=white)
    return folder


@pytest.mark.parametrize("name", PLAYLISTS)
def test_playlists_and_text_are_refused(folder, name):
    path = folder / name
    path.write_text(PLAYLISTS[name].replace("{folder}", str(folder)))
    with pytest.raises(UnreadableFileError):
        read_clip(path)


def test_a_concat_list_is_a_video_for_ffmpeg_alone(folder):
    """The control: what is refused here is otherwise read."""
    path = folder / "control.avi"
    path.write_text(PLAYLISTS["concat.avi"])
    with av.open(str(path)) as container:
        assert sum(1 for _ in container.decode(video=0)) == 10
    with pytest.raises(UnreadableFileError, match=r"expected a file that holds video or audio, found a playlist"):
        read_clip(path)


def test_an_image_pattern_does_not_lead_to_another_image(folder):
    from PIL import Image

    Image.new("RGB", (32, 32), "white").save(folder / "img001.jpg")
    Image.new("RGB", (32, 32), "black").save(folder / "img%03d.jpg")
    with av.open(str(folder / "img%03d.jpg")) as container:
        assert container.format.name == "image2"
        assert next(container.decode(video=0)).to_ndarray(format="gray").mean() > 200  # the other file's
    with pytest.raises(UnreadableFileError):
        read_clip(folder / "img%03d.jpg")
    assert read_clip(folder / "img001.jpg").frames is not None


def test_the_formats_are_ffmpegs_and_each_is_named_once():
    known = {part for name in av.formats_available for part in name.split(",")}
    names = FORMATS.split()
    assert len(set(names)) == len(names)
    assert set(names) <= known
