"""Folders to and from a storage: whole or not there, resumed, and checked against their SHA-256."""

import json
import shutil

import numpy as np
import pytest

from avdistill.cli import main
from avdistill.dataset.clip_dataset import ClipDataset
from avdistill.dataset.remote import dataset_contents
from avdistill.errors import StorageError
from avdistill.storage.copies import copy_of, fetch, folder_contents, local_copy, upload, working_copy


def below(folder):
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "made" / "run"
    (folder / "best").mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "best" / "model.safetensors").write_bytes(b"weights" * 1000)
    (folder / "best.tmp").mkdir()
    (folder / "best.tmp" / "model.safetensors").write_bytes(b"half")
    (folder / "lock").write_text("")
    return folder


def test_a_dataset_that_another_program_copied_is_fetched_and_opened(bucket, taught, tmp_path, capsys):
    bucket.add(taught.folder, "dataset")
    assert main(["fetch", "s3://bucket/dataset", "--out", str(tmp_path / "here"), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    here = ClipDataset(tmp_path / "here")
    assert (report["kind"], here.checksum, here.verify()) == ("dataset", taught.checksum, [])
    assert set(here.teachers) == {"audio"}
    there = ClipDataset("s3://bucket/dataset")
    assert (there.checksum, there.place, there.describe()["folder"]) == (taught.checksum, *["s3://bucket/dataset"] * 2)


def test_an_interrupted_fetch_goes_on_after_its_whole_files(bucket, prepared, tmp_path):
    url, out = bucket.add(prepared, "dataset"), tmp_path / "here"
    damaged = next(name for name in bucket.objects if "frames-00000" in name)
    content = bucket.objects[damaged]
    bucket.objects[damaged] = content[:-1] + bytes([content[-1] ^ 1])
    with pytest.raises(StorageError, match=r"frames-00000.npy: expected SHA-256 [0-9a-f]{12}, found .*damaged"):
        fetch(url, out, dataset_contents)
    assert not out.exists()
    bucket.objects[damaged] = content
    bucket.requests.clear()
    fetch(url, out, dataset_contents)
    shards = [name for name in bucket.asked("GET") if name.endswith((".npy", ".parquet"))]
    assert "dataset/frames-00000.npy" in shards
    assert "dataset/audio-00000.npy" not in shards
    assert ClipDataset(out).verify() == []


def test_what_is_missing_there_or_lies_elsewhere_is_one_line(bucket, prepared, tmp_path, capsys):
    url = bucket.add(prepared, "dataset")
    for arguments, message in [
        (["s3://bucket/none"], "s3://bucket/none: expected a dataset, a run or an index that is whole, found no"),
        (["folder"], "URL: expected s3://"),
    ]:
        assert main(["fetch", *arguments, "--out", str(tmp_path / "x")]) != 0
        assert message in capsys.readouterr().err
    del bucket.objects["bucket/dataset/frames-00000.npy"]
    with pytest.raises(StorageError, match=r"not whole: s3://bucket/dataset/frames-00000.npy is missing"):
        fetch(url, tmp_path / "here", dataset_contents)
    bucket.objects["bucket/run/files.json"] = json.dumps({"files": {"../../x": "0" * 64}}).encode()
    with pytest.raises(StorageError, match=r"expected names of files below it, found '../../x'"):
        fetch(bucket.url("run"), tmp_path / "run", folder_contents)
    bucket.objects["bucket/run/files.json"] = b'{"files": 3}'
    with pytest.raises(StorageError, match=r"files.json: damaged"):
        fetch(bucket.url("run"), tmp_path / "run", folder_contents)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").write_text("mine")
    with pytest.raises(StorageError, match=r"other: expected a new folder or the one of s3://bucket/dataset"):
        fetch(url, tmp_path / "other", dataset_contents)
    assert (tmp_path / "other" / "file").read_text() == "mine"


def test_the_manifest_is_written_last_and_not_at_all_if_a_file_failed(bucket, prepared, tmp_path, monkeypatch):
    monkeypatch.setenv("AVDISTILL_STORAGE_PATIENCE", "0.3")
    bucket.failing |= {"PUT", "POST"}
    with pytest.raises(StorageError, match="no answer"):
        upload(prepared, bucket.url("dataset"), dataset_contents)
    bucket.failing.clear()
    assert "bucket/dataset/dataset.json" not in bucket.objects
    upload(prepared, bucket.url("dataset"), dataset_contents)
    written = [name for name in bucket.objects if name.startswith("bucket/dataset/")]
    assert written[-1] == "bucket/dataset/dataset.json"
    expected = below(prepared)
    expected.pop("lock", None)
    assert {name.removeprefix("bucket/dataset/"): bucket.objects[name] for name in written} == expected


def test_features_that_came_later_are_added_on_both_sides(bucket, prepared, taught, tmp_path):
    url = bucket.add(prepared, "dataset")
    dataset = ClipDataset(url)
    stored = taught.features("audio")
    dataset.add_features(
        "audio",
        modality="audio",
        provenance={"name": "test"},
        embedding=np.where(stored.valid[:, None], stored.embedding, np.nan),
        logits=stored.logits,
        classes=taught.classes,
    )
    assert "bucket/dataset/features/audio/features.json" in bucket.objects
    out = tmp_path / "here"
    fetch(url, out, dataset_contents)
    shutil.rmtree(out / "features")
    bucket.requests.clear()
    fetch(url, out, dataset_contents)
    assert not [name for name in bucket.asked("GET") if "frames-" in name]
    assert ClipDataset(out).verify() == []
    assert (ClipDataset(out).features("audio").valid == stored.valid).all()


def test_a_run_is_uploaded_whole_and_its_copy_follows_the_storage(bucket, run, tmp_path):
    url = bucket.url("run")
    upload(run, url, folder_contents)
    assert list(bucket.objects)[-1] == "bucket/run/files.json"
    copy = local_copy(url)
    assert copy.name == "run"
    expected = {"config.json", "best/model.safetensors", "files.json"}
    assert set(below(copy)) == expected
    (run / "best" / "model.safetensors").write_bytes(b"better")
    upload(run, url, folder_contents)
    assert (local_copy(url) / "best" / "model.safetensors").read_bytes() == b"better"


def test_work_that_was_not_uploaded_is_kept_and_uploaded_by_the_next_call(bucket, run, monkeypatch):
    url = bucket.url("run")
    upload(run, url, folder_contents)
    monkeypatch.setenv("AVDISTILL_STORAGE_PATIENCE", "0.3")

    def work():
        with working_copy(url) as folder:
            (folder / "config.json").write_text('{"step": 2}')
            bucket.failing.update(("PUT", "POST"))

    with pytest.raises(StorageError, match="no answer"):
        work()
    bucket.failing.clear()
    assert (local_copy(url) / "config.json").read_text() == '{"step": 2}'  # not the older one of the storage
    with working_copy(url) as folder:
        assert folder == copy_of(url)
    assert bucket.objects["bucket/run/config.json"] == b'{"step": 2}'
    shutil.rmtree(folder)
    assert (local_copy(url) / "config.json").read_text() == '{"step": 2}'


def test_a_verb_that_does_not_write_to_a_storage_says_so(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["synthesize", "--out", "s3://bucket/x"]) == 2
    assert "--out: expected a folder of this machine, found a URL, which prepare, join" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
