"""Which files of a folder are videos, by content where the suffix does not tell; the same names in other Unicode."""

import logging
import os
import unicodedata
from pathlib import Path

import numpy as np
import pytest

from avdistill.annotations import read_annotations
from avdistill.annotations.video_files import locate
from avdistill.media.encoder import encode_image
from avdistill.preparation.prepare import PrepareConfig, prepare
from support.list_files import make_videos, write
from support.media_files import numbered_frames, tone, write_timed, write_video

COMPOSED, DECOMPOSED = "caf\u00e9", "cafe\u0301"


@pytest.fixture(scope="module")
def kinds(tmp_path_factory):
    """A folder per class, of files of all kinds."""
    root = tmp_path_factory.mktemp("kinds")
    for name in ("cat", "dog"):
        (root / name).mkdir()
    frames = numbered_frames(8)
    video = write_video(root / "cat" / "a.mp4", frames=frames).read_bytes()
    (root / "cat" / "without_suffix").write_bytes(video)
    (root / "cat" / "odd.xyz").write_bytes(video)
    (root / "cat" / "b.m2ts").write_bytes(write_timed(root / "part.ts", [0, 0.5], codec="libx264").read_bytes())
    (root / "part.ts").unlink()
    write_video(root / "dog" / "c.mxf", frames=frames, fps=25, codecs=("mpeg2video", ""))
    write_video(root / "dog" / "d.nut", frames=frames)
    write_video(root / "dog" / "e.wav", frames=None, waveform=tone(1, 440), codecs=("", "pcm_s16le"))
    sound = write_video(root / "dog" / "g.mka", frames=None, waveform=tone(1, 440), codecs=("", "flac"))
    (root / "dog" / "f").write_bytes(sound.read_bytes())
    (root / "dog" / "thumb.jpg").write_bytes(encode_image(frames[0]))
    (root / "dog" / "thumb").write_bytes(encode_image(frames[0]))
    (root / "dog" / "notes.txt").write_text("notes")
    (root / "dog" / "list").write_text("#EXTM3U\nd.nut\n")
    (root / "dog" / "empty.bin").touch()
    (root / "dog" / ".hidden.mp4").write_bytes(video)
    os.mkfifo(root / "dog" / "pipe")
    (root / "dog" / "gone").symlink_to(root / "nowhere")
    return root


def test_every_container_is_a_video_and_the_others_are_named(kinds, caplog):
    with caplog.at_level(logging.WARNING, "avdistill"):
        clips = read_annotations(kinds)
    assert [clip.path for clip in clips] == [
        "cat/a.mp4", "cat/b.m2ts", "cat/odd.xyz", "cat/without_suffix", "dog/c.mxf", "dog/d.nut",
    ]  # fmt: skip
    (record,) = caplog.records
    message = record.getMessage()
    assert message.startswith(f"{kinds}: 9 files left out (")
    assert "audio alone: dog/e.wav, dog/g.mka" in message
    assert "images: dog/thumb.jpg" in message
    assert "no video: dog/empty.bin, dog/f, dog/list and 2 more" in message
    assert "no file: dog/gone" in message
    assert ".hidden" not in message


def test_every_listed_file_is_prepared(kinds, tmp_path):
    dataset = prepare(read_annotations(kinds), kinds, tmp_path / "dataset", PrepareConfig(short_side=24))
    assert dataset.columns["has_video"].tolist() == [True] * 6
    assert dataset.classes == ("cat", "dog")


@pytest.mark.parametrize("listed", [COMPOSED, DECOMPOSED])
@pytest.mark.parametrize("stored", [COMPOSED, DECOMPOSED])
def test_a_name_in_another_normal_form_is_the_same(tmp_path: Path, listed, stored):
    folder = tmp_path / "videos"
    (folder / stored).mkdir(parents=True)
    write_video(folder / stored / f"{stored}.mp4", frames=numbered_frames(8))
    clips = read_annotations(write(tmp_path / "list.csv", f"path,label\n{listed}/{listed}.mp4,{listed}\n"))
    assert clips[0].labels == (COMPOSED,)
    out = tmp_path / "dataset"
    dataset = prepare(clips, folder, out, PrepareConfig(short_side=24))
    assert dataset.columns["path"].tolist() == [f"{COMPOSED}/{COMPOSED}.mp4"]
    assert prepare(clips, folder, out, PrepareConfig(short_side=24)).checksum == dataset.checksum  # nothing has changed
    assert [clip.path for clip in read_annotations(folder)] == [clips[0].path]


def test_forms_may_be_mixed_and_what_is_not_there_stays_as_it_is(tmp_path: Path):
    make_videos(tmp_path, f"{COMPOSED}/{DECOMPOSED}.mp4")
    assert locate(tmp_path, f"{COMPOSED}/{COMPOSED}.mp4") == tmp_path / COMPOSED / f"{DECOMPOSED}.mp4"
    assert locate(tmp_path, f"{DECOMPOSED}/absent.mp4") == tmp_path / DECOMPOSED / "absent.mp4"


def test_labels_that_look_alike_are_one_class(tmp_path: Path):
    rows = "".join(f"{n}.mp4,{label}\n" for n, label in enumerate((COMPOSED, DECOMPOSED, f"\u212b|{DECOMPOSED}")))
    clips = read_annotations(write(tmp_path / "list.csv", f"path,labels\n{rows}"))
    assert {label for clip in clips for label in clip.labels} == {COMPOSED, "\u00c5"}
    assert all(unicodedata.is_normalized("NFC", clip.clip_id) for clip in clips)


def test_files_of_published_lists_with_any_suffix(tmp_path: Path):
    list_file = write(tmp_path / "vggsound.csv", "---g-f_I2yQ,1,a,test\n--9O4XZOge4,30,b,train\n-0_4d,3,a,train\n")
    videos = tmp_path / "videos"
    make_videos(videos, "---g-f_I2yQ_000001.vob", "--9O4XZOge4_000030", "-0_4d_000003.jpg", "-0_4d_000003.part")
    assert [clip.path for clip in read_annotations(list_file, videos=videos)] == [
        "---g-f_I2yQ_000001.vob", "--9O4XZOge4_000030", "-0_4d_000003.mp4",
    ]  # fmt: skip
    assert np.isfinite([clip.start_seconds for clip in read_annotations(list_file)]).all()
