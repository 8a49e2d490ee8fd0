"""Datasets from videos on a storage and onto one: the checksum is that of a preparation in a folder."""

import shutil

import pytest

from avdistill.dataset.clip_dataset import ClipDataset
from avdistill.errors import DatasetError, StorageError
from avdistill.preparation.join import join
from avdistill.preparation.prepare import PrepareConfig, prepare
from avdistill.preparation.records import read_skipped
from avdistill.storage.copies import copy_of
from avdistill.teachers.extraction import Unfinished, embed
from avdistill.teachers.registry import load_teacher
from teachers.test_tokens import save_ears

CONFIG = PrepareConfig(fps=10, short_side=32)


@pytest.fixture
def videos(bucket, small_set):
    folder, annotations = small_set
    for annotation in annotations:
        bucket.objects[f"bucket/videos/{annotation.path}"] = (folder / annotation.path).read_bytes()
    return bucket.url("videos")


def test_parts_from_a_storage_to_it_join_to_the_dataset_of_a_folder(bucket, videos, small_set, prepared):
    for number in (1, 2):
        prepare(small_set[1], videos, bucket.url(f"part{number}"), CONFIG, part=(number, 2), workers=1)
    joined = join([str(bucket.url("part2")), bucket.url("part1")], bucket.url("dataset"))
    assert joined.checksum == ClipDataset(prepared).checksum
    assert joined.place == "s3://bucket/dataset"
    assert "bucket/dataset/dataset.json" in bucket.objects
    bucket.requests.clear()
    again = prepare(small_set[1], videos, bucket.url("dataset"), CONFIG)  # it is there already
    assert again.checksum == joined.checksum
    assert not bucket.asked("PUT")
    with pytest.raises(DatasetError, match="made from another list or other settings"):
        prepare(small_set[1], videos, bucket.url("dataset"), PrepareConfig(fps=5))


def test_a_server_that_is_away_while_files_are_decoded_costs_no_clip(
    bucket, videos, small_set, prepared, tmp_path, capfd
):
    back = []

    def leave(progress):
        if progress.done == 2:
            back.append(bucket.leave(tmp_path / "cache"))

    made = prepare(
        small_set[1], videos, tmp_path / "dataset", CONFIG, workers=2, time_limit_seconds=1.0, on_progress=leave
    )
    assert made.checksum == ClipDataset(prepared).checksum
    back[0].join()
    assert capfd.readouterr().err.count("s3://bucket: no answer") == 1


def test_a_server_that_stays_away_stops_the_preparation_and_the_same_call_finishes_it(
    bucket, videos, small_set, prepared, tmp_path, monkeypatch
):
    monkeypatch.setenv("AVDISTILL_STORAGE_PATIENCE", "0.3")
    out = bucket.url("dataset")

    def leave(progress):
        bucket.failing |= {"GET"}

    with pytest.raises(StorageError, match=r"no answer for 0.3 s.*; finished clips are kept; run the same command"):
        prepare(small_set[1], videos, out, CONFIG, workers=1, on_progress=leave)
    bucket.failing.clear()
    assert copy_of(out).with_name("dataset.partial").is_dir()
    done = []
    made = prepare(small_set[1], videos, out, CONFIG, workers=1, on_progress=lambda p: done.append(p.done))
    assert done[0] > 1
    assert made.checksum == ClipDataset(prepared).checksum
    assert "bucket/dataset/dataset.json" in bucket.objects


def test_a_file_that_is_not_there_is_skipped_and_one_that_came_is_noticed(bucket, videos, small_set, tmp_path):
    name = small_set[1][0].path
    content = bucket.objects.pop(f"bucket/videos/{name}")
    made = prepare(small_set[1][:2], videos, tmp_path / "dataset", CONFIG, workers=1)
    assert [skip.reason for skip in read_skipped(made.folder)] == [f"s3://bucket/videos/{name}: no such file"]
    bucket.objects[f"bucket/videos/{name}"] = content
    with pytest.raises(DatasetError, match=f"made without files that have changed or come since: {name}"):
        prepare(small_set[1][:2], videos, tmp_path / "dataset", CONFIG, workers=1)


def test_shares_of_embed_on_two_machines_meet_at_the_storage(bucket, prepared, tmp_path, monkeypatch):
    teacher = load_teacher(save_ears(tmp_path / "ears", ("bark", "hum")))
    alone = ClipDataset(shutil.copytree(prepared, tmp_path / "alone"))
    embed(alone, teacher, "audio", part_clips=4)
    expected = {file.name: file.read_bytes() for file in (alone.folder / "features" / "audio").iterdir()}
    url = bucket.add(prepared, "dataset")
    for share in (1, 2):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / f"machine{share}"))
        found = embed(ClipDataset(url), teacher, "audio", part=(share, 2), part_clips=4)
        assert isinstance(found, Unfinished) == (share == 1)
    there = {name: content for name, content in bucket.objects.items() if "/features/" in name and content}
    assert {name.removeprefix("bucket/dataset/features/audio/"): content for name, content in there.items()} == expected
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "machine3"))
    assert ClipDataset(url).verify() == []
