"""Paths that are URLs, against the bytes that a server holds; what is refused; a server that does not answer."""

import logging
import os
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from avdistill.annotations import read_annotations
from avdistill.config_io import encode
from avdistill.errors import AnnotationError, ConfigError, StorageError, UnreadableFileError
from avdistill.media import read_clip
from avdistill.storage.url import Url, as_path, states
from avdistill.training import TrainConfig


def test_a_url_stays_one_whatever_pathlib_makes_of_it():
    url = as_path("s3://bucket/a/b.mp4")
    assert isinstance(url, Url)
    assert (str(url), str(url.parent / "c"), url.name, url.suffix) == (
        "s3://bucket/a/b.mp4", "s3://bucket/a/c", "b.mp4", ".mp4",
    )  # fmt: skip
    assert os.fspath(pickle.loads(pickle.dumps(url))) == "s3://bucket/a/b.mp4"
    assert str(as_path(Path("s3://bucket/a"))) == "s3://bucket/a"  # as an option of the command line comes
    assert encode(TrainConfig(dataset=Path("s3://bucket/d"), out=Path("run")))["dataset"] == "s3://bucket/d"
    for text in ("a/b.mp4", "12:30.mp4", "/a", "C:/x", "s3:/a"):
        assert type(as_path(text)) is type(Path(text))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("http://host/a", r"http://host/a: expected .* found http://, which is no object storage"),
        ("https://host/a", "found https://"),
        ("file:///etc/passwd", "found file://"),
        ("simplecache://x/y", "found simplecache://"),
        ("nothing://x/y", "found nothing://, which none here does"),
        ("s3://name:hidden@bucket/x", r"s3://\*\*\*@bucket/x: expected credentials in the environment"),
        ("s3://bucket/x?token=hidden", r"s3://bucket/x: expected no query"),
    ],
)
def test_what_cannot_be_read_is_refused_in_one_line_without_secrets(text, message):
    with pytest.raises(ConfigError, match=message) as caught:
        as_path(text)
    assert "hidden" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_row_of_a_list_may_be_a_url_of_a_storage_but_of_nothing_else(bucket):
    bucket.objects["bucket/list.csv"] = b"path,label\ns3://other/a.mp4,x\nsub/b.mp4,y\n"
    first, second = read_annotations(bucket.url("list.csv"))
    assert (first.path, first.clip_id, second.path) == ("s3://other/a.mp4", "s3://other/a", "sub/b.mp4")
    for path in ("https://host/a.mp4", "file:///etc/passwd", "s3://name:hidden@other/a.mp4"):
        bucket.objects["bucket/list.csv"] = f"path,label\n{path},x\n".encode()
        with pytest.raises(AnnotationError, match=r"s3://bucket/list.csv, line 2: ") as caught:
            read_annotations(bucket.url("list.csv"))
        assert "hidden" not in str(caught.value)
    with pytest.raises(AnnotationError, match=r"s3://bucket/none.csv: expected a readable list"):
        read_annotations("s3://bucket/none.csv", format="csv")


def test_a_file_is_read_by_the_ranges_that_are_asked_for(bucket):
    content = np.random.default_rng(0).bytes(3_500_000)
    bucket.objects["bucket/big file"] = content
    with bucket.url("big file").open("rb") as file:
        file.seek(-1_000_000, os.SEEK_END)
        assert file.read(100) == content[-1_000_000:-999_900]
    assert [range_ for method, _, range_ in bucket.requests if method == "GET"] == ["bytes=2097152-3145727"]
    assert bucket.url("big file").read_bytes() == content


def test_folders_files_and_states(bucket):
    for name in ("a.txt", "b/c.txt", "b/d.txt"):
        bucket.objects[f"bucket/f/{name}"] = name.encode()
    url = bucket.url("f")
    assert set(url.files()) == {"a.txt", "b/c.txt", "b/d.txt"}
    assert list(url.iterdir()) == [url / "a.txt", url / "b"]
    assert (url.is_dir(), (url / "b").is_dir(), (url / "a.txt").is_file()) == (True, True, True)
    assert not (url / "no").exists()
    assert (url / "b/c.txt").stat().st_size == 7
    with pytest.raises(FileNotFoundError, match="s3://bucket/f/no"):
        (url / "no").read_bytes()
    wanted = [url / "a.txt", url / "no", *(url / f"b/{name}.txt" for name in "cdefghijklmn")]
    found = states(wanted)
    assert {file for file, state in found.items() if state} == {url / "a.txt", url / "b/c.txt", url / "b/d.txt"}
    assert found[url / "b/c.txt"] == (7, (url / "b/c.txt").stat().st_mtime_ns)  # listed, and asked for alone


def test_other_schemes_by_fsspec(tmp_path):
    url = as_path("memory://folder/x")
    (url / "y" / "a.bin").put(b"123")
    assert set(url.files()) == {"y/a.bin"}
    assert (url / "y" / "a.bin").read_bytes() == b"123"


def test_a_file_is_decoded_from_a_storage_as_from_a_folder(bucket, small_set):
    folder, annotations = small_set
    for annotation in annotations[:3]:
        bucket.objects[f"bucket/{annotation.path}"] = (folder / annotation.path).read_bytes()
        here = read_clip(folder / annotation.path, fps=5, start_seconds=0.2)
        there = read_clip(f"s3://bucket/{annotation.path}", fps=5, start_seconds=0.2)
        assert np.array_equal(here.frames, there.frames)
        assert (here.waveform is None) == (there.waveform is None)
        assert here.waveform is None or np.array_equal(here.waveform, there.waveform)
        assert here.notes == there.notes
    with pytest.raises(FileNotFoundError, match=r"s3://bucket/none\.mp4: no such file"):
        read_clip("s3://bucket/none.mp4")


def test_a_playlist_on_a_storage_is_refused_as_one_on_the_disk(bucket, small_set):
    folder, annotations = small_set
    bucket.objects["bucket/list.mp4"] = f"ffconcat version 1.0\nfile {folder / annotations[0].path}\n".encode()
    with pytest.raises(UnreadableFileError, match=r"s3://bucket/list\.mp4"):
        read_clip("s3://bucket/list.mp4")


def test_one_of_all_that_wait_says_that_the_server_is_away_and_nothing_is_lost(bucket, tmp_path, caplog):
    bucket.objects["bucket/a"] = b"content"
    back = bucket.leave(tmp_path / "cache")
    with caplog.at_level(logging.WARNING), ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda _: bucket.url("a").read_bytes(), range(4)))
    back.join()
    assert found == [b"content"] * 4
    lines = [record.getMessage() for record in caplog.records]
    assert [line.startswith("s3://bucket: no answer; trying again for up to 600 s") for line in lines] == [True]


def test_patience_ends_in_one_line_and_a_file_is_not_taken_for_damaged(bucket, small_set, monkeypatch):
    folder, annotations = small_set
    monkeypatch.setenv("AVDISTILL_STORAGE_PATIENCE", "0.5")
    bucket.objects["bucket/a.mp4"] = (folder / annotations[1].path).read_bytes()
    bucket.failing.add("GET")
    with pytest.raises(StorageError, match=r"s3://bucket/a.mp4: no answer for 0.5 s") as caught:
        read_clip("s3://bucket/a.mp4")
    assert "of-the-test" not in str(caught.value)
    monkeypatch.setenv("AVDISTILL_STORAGE_PATIENCE", "soon")
    with pytest.raises(ConfigError, match="AVDISTILL_STORAGE_PATIENCE: expected seconds, found 'soon'"):
        bucket.url("a.mp4").read_bytes()


def test_the_metadata_service_of_a_machine_is_not_asked_unless_the_environment_says_so(bucket):
    assert not bucket.url("a").exists()
    assert os.environ["AWS_EC2_METADATA_DISABLED"] == "true"
