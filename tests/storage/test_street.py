"""The whole street from and to a real S3 server that is killed and started again twice: nothing is lost."""

import json
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
from pyarrow import fs

from avdistill.cli import main
from avdistill.config_io import encode
from avdistill.dataset.clip_dataset import ClipDataset
from avdistill.inputs import AudioInput
from avdistill.methods.kd import KDConfig
from avdistill.storage.filesystems import filesystem
from avdistill.storage.url import as_path
from avdistill.teachers.extraction import embed
from avdistill.teachers.registry import load_teacher
from avdistill.training import ModelConfig, train
from support.training_cases import config
from support.weed import KEY, SECRET, Weed


@pytest.fixture
def weed(tmp_path, monkeypatch):
    server = Weed(tmp_path / "weed")
    server.start()
    settings = {"AWS_ENDPOINT_URL": server.address, "AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET}
    for name, value in (settings | {"XDG_CACHE_HOME": str(tmp_path / "cache")}).items():
        monkeypatch.setenv(name, value)
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.delenv(name, raising=False)
    filesystem.cache_clear()
    server.wait()
    client = fs.S3FileSystem(endpoint_override=server.address, region="us-east-1", allow_bucket_creation=True)
    client.create_dir("bucket")
    yield server
    server.kill()
    filesystem.cache_clear()


def leave_and_return(weed, cache, pattern, lines):
    """Kill the server once a file of the cache has some lines, and start it again."""

    def watch():
        until = time.monotonic() + 60
        while time.monotonic() < until:
            if any(file.read_bytes().count(b"\n") >= lines for file in cache.rglob(pattern)):
                break
            time.sleep(0.01)
        weed.kill()
        weed.start()

    thread = threading.Thread(target=watch)
    thread.start()
    return thread


def test_prepare_embed_train_and_evaluate(weed, small_set, prepared, tmp_path, capfd):
    folder, annotations = small_set
    rows = ["path,label,split", *(f"{a.path},{'|'.join(a.labels)},{a.split}" for a in annotations)]
    as_path("s3://bucket/list.csv").put("\n".join(rows).encode())
    for annotation in annotations:
        (as_path("s3://bucket/videos") / annotation.path).put(folder / annotation.path)

    away = leave_and_return(weed, tmp_path / "cache", "journal.jsonl", 2)
    command = "prepare s3://bucket/list.csv --videos s3://bucket/videos --out s3://bucket/dataset --workers 1"
    assert main([*command.split(), *["--fps", "10", "--short-side", "32"]]) == 0
    away.join()
    assert ClipDataset("s3://bucket/dataset").checksum == ClipDataset(prepared).checksum

    audio = ModelConfig("logmel_cnn", AudioInput(seconds=0.9))
    teaching = config(prepared, tmp_path / "teacher", student=audio, train_split="teacher", steps=2)
    learning = config(prepared, tmp_path / "run", method=KDConfig(), teacher="audio", steps=4)
    places = ("s3://bucket/dataset", "s3://bucket/teacher"), ("s3://bucket/dataset", "s3://bucket/run")
    for each, (dataset, out) in zip((teaching, learning), places, strict=True):
        there = encode(replace(each, dataset=as_path(dataset), out=as_path(out)))
        (tmp_path / f"{each.out.name}.json").write_text(json.dumps(there))
    assert main(["train", "--config", str(tmp_path / "teacher.json")]) == 0
    assert main(["embed", "s3://bucket/dataset", "--teacher", "s3://bucket/teacher", "--name", "audio"]) == 0
    away = leave_and_return(weed, tmp_path / "cache", "run/metrics.jsonl", 1)
    assert main(["train", "--config", str(tmp_path / "run.json")]) == 0
    away.join()
    # A line for each outage; on a fast machine the second may follow so soon that it counts as the first.
    assert capfd.readouterr().err.count("no answer; trying again") in (1, 2)

    # The same on this machine: the oracle.
    here = ClipDataset(fetched("dataset", tmp_path))
    assert here.verify() == []
    train(teaching)
    local = ClipDataset(fetched("dataset", tmp_path / "second"))
    embed(local, load_teacher(tmp_path / "teacher"), "again")
    assert np.array_equal(local.features("again").logits, here.features("audio").logits)
    train(replace(learning, dataset=here.folder))
    weights = (tmp_path / "run" / "best" / "model.safetensors").read_bytes()
    assert (fetched("run", tmp_path) / "best" / "model.safetensors").read_bytes() == weights

    capfd.readouterr()
    assert main(["evaluate", "s3://bucket/run", "s3://bucket/dataset", "--json"]) == 0
    metrics = json.loads(capfd.readouterr().out)
    stored = json.loads(as_path("s3://bucket/run/evaluation-test/metrics.json").read_bytes())
    assert metrics["top1_accuracy"] == stored["top1_accuracy"]
    assert metrics["clips"] == 6
    everything = b"".join(file.read_bytes() for file in (tmp_path / "cache").rglob("*") if file.is_file())
    assert SECRET.encode() not in everything


def fetched(name, out):
    assert main(["fetch", f"s3://bucket/{name}", "--out", str(out / f"fetched-{name}")]) == 0
    return out / f"fetched-{name}"
