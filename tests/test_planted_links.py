"""Links, pipes and devices in a dataset or run from somebody else: nothing is written through them or waited for."""

import hashlib
import json
import os
import shutil
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from safetensors import SafetensorError

from avdistill import fsio
from avdistill.analysis.audit.audit import Audit, write_audit
from avdistill.cli import main
from avdistill.dataset.clip_dataset import ClipDataset
from avdistill.errors import AvdistillError, DatasetError, RunError
from avdistill.fsio import remove_tree
from avdistill.methods.kd import KDConfig
from avdistill.models import weights
from avdistill.training import resume, train
from support.features import part_files
from support.training_cases import config

# Where `add_features` writes parts before they are whole.
STAGING = f"features/.audio-{hashlib.sha256(json.dumps({'in memory': True}).encode()).hexdigest()[:16]}"


@pytest.fixture(scope="module")
def trained(taught, tmp_path_factory):
    run = tmp_path_factory.mktemp("trained") / "run"
    changes = {"method": KDConfig(), "teacher": "audio", "steps": 2, "save_every": 1, "eval_every": 1}
    return train(config(taught.folder, run, **changes), stop_after=1)


@pytest.fixture
def victim(tmp_path):
    """A file that nobody may change."""
    file = tmp_path / "victim"
    file.write_text("precious")
    return file


@pytest.fixture
def copies(taught, trained, tmp_path):
    dataset, run = tmp_path / "dataset", tmp_path / "run"
    shutil.copytree(taught.folder, dataset)
    shutil.copytree(trained, run)
    return dataset, run


def embed(dataset):
    opened = ClipDataset(dataset)
    values = np.ones((len(opened), 4), np.float32)
    arguments = {"modality": "audio", "provenance": {"name": "x"}, "embedding": values, "logits": None, "classes": ()}
    opened.add_features("audio", **arguments)


def read_everything(dataset):
    opened = ClipDataset(dataset)
    opened.features("audio")
    for clip in range(len(opened)):
        for reader, has in ((opened.frames, "has_video"), (opened.audio, "has_audio")):
            if opened.columns[has][clip]:
                reader(clip)


@pytest.mark.parametrize(
    "name",
    ["lock", "features/audio/features.json", f"{STAGING}/part-00000000.valid.tmp", f"{STAGING}/part-00000000.json"],
)
def test_embed_writes_through_no_link(name, copies, victim):
    dataset, _ = copies
    (dataset / name).parent.mkdir(exist_ok=True)
    (dataset / name).unlink(missing_ok=True)
    (dataset / name).symlink_to(victim)
    with suppress(AvdistillError, OSError):
        embed(dataset)
    assert victim.read_text() == "precious"


@pytest.mark.parametrize("name", ["features", "features/audio", STAGING])
def test_features_are_not_written_into_a_linked_folder(name, copies, tmp_path):
    dataset, _ = copies
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    remove_tree(dataset / name)
    (dataset / name).symlink_to(elsewhere)
    with pytest.raises(DatasetError, match="found a link"):
        embed(dataset)
    assert not list(elsewhere.iterdir())


@pytest.mark.parametrize("name", ["lock", "metrics.jsonl", "metrics.jsonl.tmp", "last.tmp", "best.tmp"])
@pytest.mark.parametrize("kind", ["link", "dangling", "hard", "pipe"])
def test_resume_writes_through_no_link(name, kind, copies, victim, tmp_path):
    _, run = copies
    before, elsewhere = victim.read_text(), tmp_path / "elsewhere"
    (run / name).unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(run / name)
    elif kind == "hard":
        os.link(victim, run / name)
    else:
        (run / name).symlink_to(victim if kind == "link" else elsewhere)
    with suppress(AvdistillError, OSError):
        resume(run)
    assert victim.read_text() == before
    assert not elsewhere.exists()


@pytest.mark.parametrize("verb", ["evaluate", "retrieve", "audit"])
def test_results_are_not_written_into_a_linked_folder(verb, copies, tmp_path, capsys):
    dataset, run = copies
    split = ClipDataset(dataset).columns["split"][0]
    folder = {"evaluate": "evaluation", "retrieve": "retrieval", "audit": "audit"}[verb]
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (run / f"{folder}-{split}").symlink_to(elsewhere)
    options = {"retrieve": ["--query-split", split]}.get(verb, ["--split", split])
    assert main([verb, str(run), str(dataset), *options]) == 1
    assert "found a link" in capsys.readouterr().err
    assert not list(elsewhere.iterdir())


@pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
@pytest.mark.parametrize("name", ["frames-00000.npy", "audio-00000.npy", "clips.parquet", "logits"])
def test_a_shard_that_would_be_waited_for_is_refused(kind, name, copies):
    dataset, _ = copies
    file = part_files(ClipDataset(dataset), "audio", name)[0] if name == "logits" else dataset / name
    file.unlink()
    if kind == "pipe":
        os.mkfifo(file)
    elif kind == "device":
        file.symlink_to("/dev/zero")
    else:
        file.mkdir()
    with pytest.raises(AvdistillError, match=r"expected a file|[Dd]irectory"):
        read_everything(dataset)


@pytest.mark.parametrize("name", ["data.json", "config.json", "last/state.pt", "last/helpers.safetensors"])
def test_a_pipe_in_a_run_is_refused(name, copies):
    _, run = copies
    (run / name).unlink()
    os.mkfifo(run / name)
    with pytest.raises((AvdistillError, OSError)):
        resume(run)


def test_verifying_reads_no_device_and_no_file_outside(copies, capsys):
    dataset, _ = copies
    content = json.loads((dataset / "dataset.json").read_text())
    for name in ("../run/config.json", "/dev/zero", "a/b"):
        changed = content | {"files": content["files"] | {name: "0" * 64}}
        (dataset / "dataset.json").write_text(json.dumps(changed))
        assert main(["info", str(dataset)]) == 1
        assert "expected the name of a file in the folder" in capsys.readouterr().err


def test_results_are_whole_or_not_there(tmp_path):
    out = tmp_path / "out"
    with suppress(ZeroDivisionError), fsio.result_folder(out) as fresh:
        (fresh / "metrics.json").write_text("{}")
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())
    for text in ("first", "second"):
        with fsio.result_folder(out) as fresh:
            (fresh / "metrics.json").write_text(text)
        assert (out / "metrics.json").read_text() == text
    (out / "mine.txt").write_text("kept")
    with fsio.result_folder(out) as fresh:
        (fresh / "metrics.json").write_text("third")
    assert {file.name: file.read_text() for file in out.iterdir()} == {"metrics.json": "third", "mine.txt": "kept"}
    assert [file.name for file in tmp_path.iterdir()] == ["out"]


def test_a_full_disk_names_the_place(tmp_path):
    with pytest.raises(OSError, match="No space") as error, fsio.result_folder(tmp_path / "out"):
        raise OSError(28, "No space left on device")
    assert (error.value.filename, error.value.strerror) == (str(tmp_path / "out"), "No space left on device")


def test_files_that_a_full_disk_cannot_hold_are_named(tmp_path, monkeypatch):
    def full_disk(descriptor):
        raise OSError(28, "No space left on device")  # as of `write`, without a name

    monkeypatch.setattr(os, "fsync", full_disk)
    for write, value in ((fsio.write_json, {}), (fsio.write_text, ""), (fsio.write_array, np.zeros(3))):
        with pytest.raises(OSError, match="No space") as error:
            write(tmp_path / "file", value)
        assert error.value.filename == str(tmp_path / "file")


def test_an_audit_on_a_full_disk_names_its_folder(tmp_path, monkeypatch):
    def full_disk(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space") as error, fsio.result_folder(tmp_path / "audit") as fresh:
        write_audit(fresh, Audit([{"id": "a"}], [0], {}, {}))
    assert error.value.filename == str(tmp_path / "audit")
    assert not list(tmp_path.iterdir())


def test_weights_that_a_full_disk_cannot_hold_are_named(tmp_path, monkeypatch):
    def full_disk(values, file, metadata):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(weights, "save_file", full_disk)
    with pytest.raises(OSError, match="No space left on device") as error:
        weights.save_tensors({}, tmp_path / "model.safetensors")
    assert error.value.filename == str(tmp_path / "model.safetensors")


def test_results_need_no_room_beside_a_folder_that_is_there(tmp_path, monkeypatch):
    """Such as one that is mounted: what is beside it may be another file system, or not be writable."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("kept")
    made = []
    monkeypatch.setattr(Path, "mkdir", lambda self, *a, make=Path.mkdir, **k: (made.append(self), make(self, *a, **k)))
    with fsio.result_folder(tmp_path / "out") as fresh:
        (fresh / "metrics.json").write_text("first")
    assert [folder.parent for folder in made] == [tmp_path / "out"]
    assert {file.name for file in (tmp_path / "out").iterdir()} == {"metrics.json", "mine.txt"}


def test_a_staging_folder_that_is_a_link_is_refused(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "dataset.partial").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="found a link"):
        fsio.acquire_staging_dir(tmp_path / "dataset.partial", tmp_path / "dataset")
    assert not list((tmp_path / "elsewhere").iterdir())


def test_a_run_that_is_locked_by_a_pipe_is_an_error(copies):
    _, run = copies
    (run / "lock").unlink(missing_ok=True)
    os.mkfifo(run / "lock")
    with pytest.raises(RunError, match="found a link, pipe or device"):
        resume(run)
