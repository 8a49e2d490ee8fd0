"""Prepared and embedded in parts, joined: the oracle is one machine's dataset and features."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from avdistill.annotations import Annotation
from avdistill.cli import main
from avdistill.dataset.clip_dataset import ClipDataset
from avdistill.errors import ConfigError, TeacherError
from avdistill.preparation import part_tasks
from avdistill.preparation.prepare import PrepareConfig, prepare
from avdistill.teachers import launch
from avdistill.teachers.extraction import embed
from avdistill.teachers.joining import join_features
from avdistill.teachers.launch import Encoder, embed_in_parts, prepare_in_parts
from support.inline_executor import InlineExecutor
from support.media_files import small_videos
from support.teacher_run import audio_teacher_run

CONFIG = PrepareConfig(fps=10, short_side=16)
FAULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "faults"


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("launched")
    annotations = small_videos(folder)
    (folder / "broken.mp4").write_bytes(b"\x07" * 999)
    extra = (("note", "a \u2028 line"),)
    annotations.insert(3, Annotation("broken", "broken.mp4", ("c0",), "train", extra=extra, group="alone"))
    return folder, annotations


@pytest.fixture(scope="module")
def encoder(videos, tmp_path_factory):
    """A run folder: an audio network of random weights with classes of its own, so that a head is fitted."""
    return Encoder(str(audio_teacher_run(tmp_path_factory.mktemp("teacher") / "run", ("x", "y"))), "audio")


@pytest.fixture(scope="module")
def alone(videos, encoder, tmp_path_factory):
    """One machine's dataset and features."""
    folder, annotations = videos
    dataset = prepare(annotations, folder, tmp_path_factory.mktemp("alone") / "dataset", CONFIG, workers=1)
    embed(dataset, encoder.load(), "audio")
    return dataset


def write_list(file, annotations):
    with file.open("w") as opened:
        for a in annotations:
            row = {"id": a.clip_id, "path": a.path, "labels": a.labels, "split": a.split, "group": a.group}
            opened.write(json.dumps(row | dict(a.extra)) + "\n")


def outside():
    """For a process of its own, whose workers find what this one imports; Slurm is not there."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PATH": "/nowhere", "OMP_NUM_THREADS": "1"}
    return {"text": True, "env": environment, "timeout": 900}


def check_same(found, expected):
    assert found.checksum == expected.checksum
    assert found.columns["id"].tolist() == expected.columns["id"].tolist()
    one, two = expected.features("audio"), found.features("audio")
    np.testing.assert_array_equal(two.valid, one.valid)
    assert 0 < one.valid.sum() < len(one.valid)  # some are silent
    assert two.provenance == one.provenance
    assert two.classes == one.classes == expected.classes
    # Batches of other clips: the last bits may differ.
    np.testing.assert_allclose(two.embedding, one.embedding, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(two.logits, one.logits, rtol=1e-4, atol=1e-4)
    for entry in (found.teachers["audio"], expected.teachers["audio"]):
        assert (entry.fitted_head, entry.head_split, entry.clips) == (True, "train", one.valid.sum())
    assert found.verify() == []


def test_the_parts_join_to_one_machines_dataset_and_features(videos, alone, encoder, tmp_path, monkeypatch):
    monkeypatch.setattr("avdistill.teachers.joining.PART_CLIPS", 5)
    folder, annotations = videos
    out, executor, seen = tmp_path / "dataset", InlineExecutor(), []

    def go():
        return prepare_in_parts(
            annotations, folder, out, CONFIG, executor=executor, parts=4, encoders=[encoder], on_progress=seen.append
        )

    executor.end_after = 5  # as a kill of the call: two parts are not embedded
    with pytest.raises(KeyboardInterrupt):
        go()
    assert (tmp_path / "dataset.parts").is_dir()
    executor = InlineExecutor()
    check_same(go(), alone)
    assert (seen[-1].done, seen[-1].total) == (8, 8)
    embedded = [number for number, function in enumerate(executor.order) if function == "embed_part"]
    prepared = [number for number, function in enumerate(executor.order) if function == "prepare_part"]
    assert min(embedded) < max(prepared)  # overlapped, part by part
    assert [path.name for path in tmp_path.iterdir()] == ["dataset"]

    executor = InlineExecutor()  # the same call finds everything there
    check_same(go(), alone)
    assert executor.order == []
    shutil.rmtree(out / "features")  # as of a call without a teacher, or killed before the features were joined
    check_same(go(), alone)
    assert set(executor.order) == {"embed_share"}


def test_join_brings_the_features_that_users_put_into_parts(videos, alone, encoder, tmp_path, capsys):
    folder, annotations = videos
    parts = []
    for number in (1, 2):
        dataset = prepare(annotations, folder, tmp_path / f"part_{number}", CONFIG, part=(number, 2), workers=1)
        embed(dataset, encoder.load(), "audio")
        parts.append(str(dataset.folder))
    assert main(["join", *parts, "--out", str(tmp_path / "joined"), "--json"]) == 0
    out = capsys.readouterr()
    assert json.loads(out.out)["checksum"] == alone.checksum
    assert "'audio': joined" in out.err
    check_same(ClipDataset(tmp_path / "joined"), alone)

    dataset = ClipDataset(parts[1])  # another network in one of the parts
    stored = dataset.features("audio")
    dataset.add_features(
        "audio", modality="audio", provenance={"name": "another"}, embedding=stored.embedding, logits=None, classes=()
    )
    shutil.rmtree(tmp_path / "joined" / "features")
    with pytest.raises(ConfigError, match=r"part_2: features 'audio': expected those of the teacher of .*provenance"):
        join_features(parts, ClipDataset(tmp_path / "joined"))
    with pytest.raises(TeacherError, match="none in any part"):
        join_features(parts, ClipDataset(tmp_path / "joined"), ["video"])


def test_shares_of_one_dataset_are_embedded_by_tasks(alone, encoder, tmp_path):
    dataset = ClipDataset(shutil.copytree(alone.folder, tmp_path / "dataset"))
    shutil.rmtree(dataset.folder / "features")
    dataset.reopen_features()
    executor = InlineExecutor()
    entry = embed_in_parts(dataset, encoder, executor=executor, parts=3)
    assert (entry.name, executor.order) == ("audio", ["embed_share"] * 3)
    check_same(ClipDataset(dataset.folder), alone)


def test_a_machine_that_does_not_see_the_folder_says_so(videos, tmp_path, monkeypatch):
    folder, annotations = videos
    monkeypatch.setattr(launch, "write_list", lambda *_: None)
    with pytest.raises(ConfigError, match="expected a folder that all machines share, found none on "):
        prepare_in_parts(annotations, folder, tmp_path / "dataset", CONFIG, executor=InlineExecutor(), parts=2)


def test_a_part_waits_for_the_machine_that_was_taken_for_lost(videos, tmp_path, monkeypatch):
    folder, annotations = videos
    parts = tmp_path / "dataset.parts"
    parts.mkdir()
    part_tasks.write_list(parts, annotations)
    assert part_tasks.read_list(parts) == annotations
    out = parts / "part"
    (parts / "part.partial").mkdir()
    holder = subprocess.Popen(
        [sys.executable, "-c", "import fcntl, sys; f = open(sys.argv[1], 'a'); fcntl.flock(f, 2); print(flush=True); "
         "sys.stdin.read()", str(parts / "part.partial" / "lock")],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert holder.stdout.readline() == b"\n"
    waited = []

    def sleep(seconds):  # the other machine is really gone
        waited.append(seconds)
        holder.communicate()

    monkeypatch.setattr(part_tasks.time, "sleep", sleep)
    part_tasks.prepare_part(parts, (1, 2), out, folder, CONFIG, part_tasks.Limits())
    assert waited
    assert len(ClipDataset(out)) > 0


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--ray", "auto", "--slurm", "time=5"], "expected it or --slurm, found both"),
        (["--slurm", "time=5", "--part", "1/2"], "--part: expected without --ray and --slurm"),
        (["--slurm", "time=5", "--parts", "0"], "--parts: expected at least 1"),
        (["--slurm", "soon"], "expected pairs such as"),
    ],
)
def test_calls_that_cannot_be_are_refused(videos, tmp_path, capsys, words, expected):
    folder, _ = videos
    (tmp_path / "list.csv").write_text("path,label\nclip_0.mp4,c0\n")
    call = ["prepare", str(tmp_path / "list.csv"), "--videos", str(folder), "--out", str(tmp_path / "out"), *words]
    assert main(call) == 2
    assert expected in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_prepare_by_submitit_has_one_machines_checksum(videos, alone, tmp_path, warm_python):
    """The command, with submitit's processes of this machine, as there is no Slurm."""
    pytest.importorskip("submitit", reason="submitit is not installed: pip install avdistill[slurm]")
    folder, annotations = videos
    write_list(tmp_path / "list.jsonl", annotations)
    words = [sys.executable, "-m", "avdistill", "prepare", tmp_path / "list.jsonl", "--videos", folder, "--fps", "10"]
    words += ["--short-side", "16", "--slurm", "partition=any", "--parts", "2", "--json"]
    words = [*map(str, words), "--out", str(tmp_path / "dataset")]
    done = warm_python.run(words, **outside())
    assert done.returncode == 0, done.stderr
    assert "no Slurm here" in done.stderr
    dataset = ClipDataset(tmp_path / "dataset")
    assert dataset.checksum == json.loads(done.stdout)["checksum"] == alone.checksum
    assert Path(dataset.folder).with_name("dataset.slurm").is_dir()  # scripts and logs


def test_a_ray_cluster_that_loses_a_node_makes_one_machines_dataset(videos, alone, encoder, tmp_path):
    """In processes of their own: the cluster, whose second node is killed in the midst, and the command."""
    pytest.importorskip("ray", reason="ray is not installed: pip install avdistill[ray]")
    folder, annotations = videos
    write_list(tmp_path / "list.jsonl", annotations)
    out = tmp_path / "dataset"
    words = ["prepare", tmp_path / "list.jsonl", "--videos", folder, "--out", out, "--fps", "10", "--short-side", "16"]
    words += ["--teacher", encoder.teacher, "--parts", "3", "--json"]
    script = [sys.executable, FAULTS / "ray_cluster.py", f"{out}.parts", *words]
    done = subprocess.run([*map(str, script)], capture_output=True, check=False, **outside())
    assert done.returncode == 0, done.stderr
    killed, _, report = done.stdout.partition("\n")
    assert "killed a node" in killed
    assert "1 of 2 nodes are left" in done.stderr
    dataset = ClipDataset(out)
    assert dataset.checksum == json.loads(report)["checksum"] == alone.checksum
    np.testing.assert_allclose(
        dataset.features("run").embedding, alone.features("audio").embedding, rtol=1e-5, atol=1e-6
    )
