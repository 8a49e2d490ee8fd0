"""Decisions: the file, the dataset as they leave it, and a training that honors them like a dataset changed by hand."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from avdistill.cli import main
from avdistill.dataset.clip_dataset import ClipDataset
from avdistill.dataset.decisions import DecidedDataset, Decision, open_dataset, read_decisions, write_decisions
from avdistill.dataset.schema import CLIP_SCHEMA
from avdistill.errors import AnnotationError, DatasetError, RunError
from avdistill.inputs import AudioInput, VideoInput
from avdistill.methods import METHODS
from avdistill.methods.kd import KDConfig
from avdistill.methods.supervised import SupervisedConfig
from avdistill.training import ModelConfig, TrainConfig, resume, train

# clipN of many_clips has label class_{N % 3}; the first thirty are for training.
TEXT = """clip,decision,by
clip0,keep,reviewer
clip1,drop_audio,audit: correspondence >= 0.5
clip2,drop_clip,reviewer
clip3,relabel:class_2,reviewer
clip4,drop_audio,reviewer
clip35,drop_clip,reviewer
"""
VIEW = VideoInput(frames=4, size=(16, 20), scale=(1.0, 1.0), ratio=(1.25, 1.25), hflip=False)


def written(folder, text=TEXT):
    path = folder / "decisions.csv"
    path.write_text(text, encoding="utf-8")
    return path


def config(dataset, out, method, **changes):
    return TrainConfig(
        dataset=dataset.folder,
        out=out,
        student=ModelConfig("shifted_frames", VIEW, {"width": 8, "embedding_dim": 16}),
        method=method,
        teacher="audio" if method.name != "supervised" else None,
        **{"steps": 4, "batch_size": 8, "val_fraction": 0.2, "eval_every": 4, "log_every": 1} | changes,
    )


def changed_by_hand(dataset, out):
    """A copy in which TEXT was carried out in the files: rows changed or moved to another split, features removed."""
    shutil.copytree(dataset.folder, out)
    rows = pq.read_table(out / "clips.parquet").to_pylist()
    entry, stored = dataset.teachers["audio"], dataset.features("audio")
    embedding, logits = (np.where(stored.valid[:, None], x, np.nan) for x in (stored.embedding, stored.logits))
    for i, row in enumerate(rows):
        if row["id"] in ("clip1", "clip4"):
            row |= {"has_audio": False, "audio_offset": 0, "audio_count": 0}
            embedding[i] = logits[i] = np.nan
        elif row["id"] in ("clip2", "clip35"):
            row["split"] = "nowhere"
        elif row["id"] == "clip3":
            row["labels"] = ["class_2"]
    pq.write_table(pa.Table.from_pylist(rows, schema=CLIP_SCHEMA), out / "clips.parquet")
    about = {"modality": "audio", "provenance": entry.provenance, "classes": entry.classes}
    ClipDataset(out).add_features("audio", embedding=embedding, logits=logits, **about)
    return ClipDataset(out)


def losses(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["losses"] for line in lines if "losses" in line], [line.get("validation") for line in lines]


@pytest.mark.parametrize("method", ["supervised", "kd", "mnf_csc", "crd", "robust"])
def test_training_is_that_on_a_dataset_changed_by_hand(many_clips, tmp_path, method):
    settings = METHODS[method].config_class()
    run = train(config(many_clips, tmp_path / "decided", settings, decisions=written(tmp_path)))
    by_hand = train(config(changed_by_hand(many_clips, tmp_path / "copy"), tmp_path / "by_hand", settings))
    assert losses(run) == losses(by_hand)
    record = json.loads((run / "data.json").read_text())
    assert record["training"] == json.loads((by_hand / "data.json").read_text())["training"]
    assert "clip2" not in record["training"] + record["validation"]
    assert record["decisions"] == {"keep": 1, "drop_audio": 2, "drop_clip": 2, "relabel": 1}
    assert json.loads((by_hand / "data.json").read_text())["decisions"] is None


def test_an_audio_student_leaves_out_dropped_audio(many_clips, tmp_path):
    view = AudioInput(seconds=0.3)
    settings = config(many_clips, tmp_path / "run", SupervisedConfig(), decisions=written(tmp_path), steps=1)
    student = ModelConfig("logmel_cnn", view, {"width": 4, "embedding_dim": 8})
    run = train(replace(settings, student=student))
    record = json.loads((run / "data.json").read_text())
    assert {"clip1", "clip2", "clip4"}.isdisjoint(record["training"] + record["validation"])
    assert record["left_out_without_modality"] == 2


def test_the_dataset_is_seen_as_decided_and_its_folder_is_not_changed(many_clips, tmp_path):
    before = {file: file.read_bytes() for file in many_clips.folder.rglob("*") if file.is_file()}
    found = open_dataset(many_clips.folder, written(tmp_path))
    ids = [f"clip{i}" for i in range(40) if i not in (2, 35)]
    assert found.columns["id"].tolist() == ids
    stored, plain = found.features("audio"), many_clips.features("audio")
    for row, name in enumerate(ids):
        number, dropped = int(name[4:]), name in ("clip1", "clip4")
        assert found.labels[row] == (f"class_{2 if number == 3 else number % 3}",)
        assert found.columns["has_audio"][row] == stored.valid[row] == (not dropped)
        expected = plain.embedding[number] * (not dropped)
        assert stored.embedding[row].tolist() == expected.tolist()
        assert stored.logits[row].tolist() == (plain.logits[number] * (not dropped)).tolist()
        assert np.array_equal(found.frames(row), many_clips.frames(number))
    with pytest.raises(DatasetError, match="has no audio"):
        found.audio(1)
    with pytest.raises(DatasetError, match="expected the dataset itself"):
        found.add_features(
            "audio", modality="audio", provenance={}, embedding=stored.embedding, logits=None, classes=()
        )
    assert found.checksum != many_clips.checksum
    assert (
        open_dataset(many_clips.folder, written(tmp_path, "clip,decision\nclip0,keep\n")).checksum
        == many_clips.checksum
    )
    assert {file: file.read_bytes() for file in many_clips.folder.rglob("*") if file.is_file()} == before


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("clip,decision\nclip1,keep\nclip77,keep\n", r"decisions.csv, line 3: expected the id of a clip of .*'clip77'"),
        (
            "clip,decision\nclip1,keep\nclip1,drop_clip\n",
            "line 3: expected every clip once, found 'clip1' as in .* line 2",
        ),
        (
            "clip,decision\nclip1,remove\n",
            "line 2: expected keep, drop_audio, drop_clip or relabel:NAME, found 'remove'",
        ),
        ("clip,decision\nclip1,keep:x\n", "found 'keep:x'"),
        ("clip,decision\nclip1,relabel:dog\n", "relabel:NAME with one of the dataset's 3 classes, found 'dog'"),
        ("clip,decision\nclip1,relabel:\n", "relabel:NAME .* found 'relabel:'"),
        ("clip,by\nclip1,me\n", "line 1: expected the columns clip, decision, by, found no column 'decision'"),
        ("clip,decision\nclip1\n", "line 2: expected 2 cells"),
    ],
)
def test_a_file_that_cannot_be_followed_is_refused_with_its_line(many_clips, tmp_path, text, expected):
    with pytest.raises(AnnotationError, match=expected):
        read_decisions(written(tmp_path, text), many_clips)


def test_a_missing_file_and_a_dataset_without_clips_are_refused(many_clips, tmp_path, capsys):
    everything = [Decision(f"clip{i}", "drop_clip") for i in range(40)]
    with pytest.raises(DatasetError, match="found all 40 dropped"):
        DecidedDataset(many_clips, everything)
    words = ["train", "demo_supervised", "--dataset", str(many_clips.folder), "--out", str(tmp_path / "run")]
    assert main([*words, "--decisions", str(tmp_path / "none.csv")]) == 1
    assert capsys.readouterr().err.strip().endswith("none.csv: No such file or directory")
    assert not (tmp_path / "run").exists()


def test_what_is_written_is_read(many_clips, tmp_path):
    decisions = [
        Decision("clip1", "relabel", ("class_0", "class_2"), "a, b"),
        Decision("clip5", "drop_audio", by='"x"'),
    ]
    write_decisions(tmp_path / "decisions.csv", decisions)
    assert read_decisions(tmp_path / "decisions.csv", many_clips) == decisions


def test_a_run_continues_only_with_the_same_decisions(many_clips, tmp_path):
    path = written(tmp_path)
    whole = train(config(many_clips, tmp_path / "whole", KDConfig(), decisions=path))
    run = train(config(many_clips, tmp_path / "run", KDConfig(), decisions=path), stop_after=2)
    path.write_text(TEXT.replace("clip4,drop_audio", "clip4,drop_clip"))
    with pytest.raises(RunError, match=r"with the decisions of .* is no longer the one"):
        resume(run)
    path.write_text(TEXT.replace("reviewer", "somebody else"))
    assert losses(resume(run)) == losses(whole)


def test_corrupt_carries_decisions_out(many_clips, tmp_path, capsys):
    words = ["corrupt", str(many_clips.folder), "clean", "--out", str(tmp_path / "new")]
    assert main([*words, "--decisions", str(written(tmp_path))]) == 0
    new, seen = ClipDataset(tmp_path / "new"), open_dataset(many_clips.folder, tmp_path / "decisions.csv")
    assert new.verify() == []
    assert new.table.drop_columns("extra") == seen.table.drop_columns("extra")
    assert new.features("audio").embedding.tolist() == seen.features("audio").embedding.tolist()
    assert main([*words, "--decisions", str(written(tmp_path, "clip,decision\nclip0,drop_clip\n"))]) == 1
    assert "already there, and not this dataset" in capsys.readouterr().err


def test_compare_trains_with_them_and_tests_without(many_clips, tmp_path, capsys):
    words = ["compare", str(many_clips.folder), "--out", str(tmp_path / "study"), "--methods", "kd"]
    words += ["--seeds", "0", "--recipe", "demo_supervised", "--base.steps", "1", "--base.batch-size", "16", "--json"]
    assert main([*words, "--decisions", str(written(tmp_path))]) == 0
    run = tmp_path / "study" / "runs" / "clean" / "kd" / "seed-0"
    assert json.loads((run / "data.json").read_text())["decisions"]["drop_clip"] == 2
    assert json.loads(capsys.readouterr().out)["runs"][0]["test_clips"] == 10
    assert main([*words, "--decisions", str(written(tmp_path, "clip,decision\nclip99,keep\n"))]) == 1
    assert "expected the id of a clip" in capsys.readouterr().err
