"""What a teacher knows: metrics of known features, published metrics of UCF51's audio, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from sklearn import metrics as sk
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import Normalizer

from avdistill.analysis.teacher_probe import (
    LabeledFeatures,
    dataset_features,
    identical_embeddings,
    npz_features,
    probe,
)
from avdistill.cli import main
from avdistill.dataset.clip_dataset import ClipDataset
from avdistill.errors import ConfigError, TeacherError
from avdistill.evaluation.linear_probe import ProbeConfig
from support.features import feature_arrays

ONE = (ProbeConfig("unit", 10.0),)


def arrays(clips: int = 90, classes: int = 3, noise: float = 0.5, seed: int = 0) -> dict[str, np.ndarray]:
    """Clips named as UCF101's, two to a group, in the splits train, train, test by group."""
    rng = np.random.default_rng(seed)
    label = np.arange(clips) // 2 % classes
    group = np.arange(clips) // (2 * classes)
    centers = rng.standard_normal((classes, 8))
    return {
        "name": np.array([f"v_Class{c}_g{g:02d}_c{i % 2}" for i, (c, g) in enumerate(zip(label, group, strict=True))]),
        "label": np.array([f"Class{c}" for c in label]),
        "split": np.array(["test" if g % 3 == 2 else "train" for g in group]),
        "embedding": (centers[label] + noise * rng.standard_normal((clips, 8))).astype(np.float32),
    }


def write(path: Path, **changed: object) -> Path:
    np.savez(path, **(arrays() | changed))
    return path


def features(labels: list[tuple[str, ...]] | None = None, **options: object) -> LabeledFeatures:
    made = arrays(**options)
    return LabeledFeatures(
        source="test",
        ids=made["name"],
        embedding=made["embedding"],
        labels=[(name,) for name in made["label"].tolist()] if labels is None else labels,
        splits=made["split"],
        groups=np.array([name.rsplit("_", 1)[0] for name in made["name"]]),
    )


def test_the_published_metrics_of_ucf51_audio(development_data):
    """Training -> validation. The setting is the one that cross-validation chooses of all (six settings, 3 folds)."""
    given = npz_features(development_data / "ucf51_sound" / "cnn14_embed512.npz")
    assert len(set(given.groups[given.splits == "training"].tolist())) == 917
    report = probe(given, settings=ONE)
    assert (report["train_split"], report["split"]) == ("training", "validation")
    assert report["clips"] == {"training": 4892, "validation": 1944}
    assert report["probe"]["top1_accuracy"] >= 0.457
    assert report["probe"]["top5_accuracy"] >= 0.73
    assert report["probe"]["converged"]
    expected = {"hit@1": 0.403, "hit@5": 0.598, "hit@10": 0.683, "hit@20": 0.774, "map": 0.216}
    assert {name: report["retrieval"][name] for name in expected} == pytest.approx(expected, abs=1e-3)
    same = report["identical"]
    assert (same["sets"], same["across_splits"]) == (17, 3)
    assert {"v_Archery_g03_c03", "v_ApplyLipstick_g17_c04"} in [set(row["ids"]) for row in same["examples"][:3]]
    assert report["silence"]["without_embedding"] == report["silence"]["zero_embedding"] == 0


def test_the_probe_is_logistic_regression_of_the_chosen_setting():
    given = features(noise=1.5)
    report = probe(given)
    found = report["probe"]
    train, test = given.splits == "train", given.splits == "test"
    labels = np.array([row[0] for row in given.labels])
    assert len(found["cross_validation"]) == 6
    best = max(found["cross_validation"], key=lambda row: row["score"])
    assert (found["scaling"], found["c"]) == (best["scaling"], best["c"])
    alone = probe(given, settings=ONE)["probe"]
    x = Normalizer().fit_transform(given.embedding)
    guess = LogisticRegression(C=10.0, max_iter=1000).fit(x[train], labels[train]).predict(x[test])
    assert alone["top1_accuracy"] == sk.accuracy_score(labels[test], guess)
    assert alone["mean_class_accuracy"] == pytest.approx(sk.balanced_accuracy_score(labels[test], guess))
    assert alone["top5_accuracy"] == 1  # of three classes
    assert [row["name"] for row in alone["per_class"]] == ["Class0", "Class1", "Class2"]
    assert alone["cross_validation"] == []
    json.dumps(report, allow_nan=False)


def test_what_is_evaluated_has_no_say_in_the_setting():
    given = features(noise=1.5)
    changed = features(noise=1.5)
    changed.embedding[changed.splits == "test"] = 1.0
    expected, found = probe(given)["probe"], probe(changed)["probe"]
    assert found["cross_validation"] == expected["cross_validation"]
    assert found["top1_accuracy"] == pytest.approx(1 / 3)  # one embedding for all: one class of three


def test_noise_knows_nothing_although_clips_of_one_video_are_alike():
    """Two copies of each embedding: folds that cut through videos would find each one again and choose wrongly."""
    given = features(clips=360)
    noise = np.random.default_rng(1).standard_normal((180, 8)).astype(np.float32)
    given.embedding[:] = np.repeat(noise, 2, axis=0)
    given.embedding[given.splits == "test"] += 0.01
    report = probe(given)
    assert max(row["score"] for row in report["probe"]["cross_validation"]) < 0.5
    assert report["probe"]["top1_accuracy"] < 0.5
    assert report["identical"]["sets"] == 180
    assert report["identical"]["across_splits"] == 0


def test_absence_is_left_out_and_counted():
    given = features()
    given.embedding[:6] = np.nan
    given.embedding[20:23] = 0
    labels = [() if i in (30, 31) else row for i, row in enumerate(given.labels)]
    given = LabeledFeatures("test", given.ids, given.embedding, labels, given.splits, given.groups)
    report = probe(given, settings=ONE)
    assert report["clips"] == {"train": 60 - 6, "test": 30 - 2}
    assert report["silence"] == {
        "clips": 90, "without_embedding": 6, "zero_embedding": 3, "without_audio": None, "silent": None,
    }  # fmt: skip
    assert report["identical"]["sets"] == 1  # the zeros, not the absent ones
    assert report["identical"]["examples"][0]["ids"] == given.ids[20:23].tolist()


def test_identical_embeddings_bit_for_bit():
    given = features()
    train, test = np.flatnonzero(given.splits == "train"), np.flatnonzero(given.splits == "test")
    given.embedding[train[1]] = given.embedding[train[0]]  # one label
    given.embedding[test[0]] = given.embedding[train[5]]  # across splits
    given.embedding[test[-1]] = given.embedding[train[5]]
    given.embedding[train[9]] = np.nextafter(given.embedding[train[8]], np.float32(9))  # almost
    found = identical_embeddings(given)
    pairs = {
        i: [j for j in range(90) if given.embedding[i].tobytes() == given.embedding[j].tobytes()] for i in range(90)
    }
    expected = {tuple(same) for same in pairs.values() if len(same) > 1}
    assert {tuple(row["ids"]) for row in found["examples"]} == {tuple(given.ids[list(same)]) for same in expected}
    assert (found["sets"], found["clips"], found["across_splits"], found["labels_differ"]) == (2, 5, 1, 1)
    assert len(found["examples"][0]["splits"]) == 2


def test_several_labels_per_clip():
    given = features(noise=0.3)
    labels = [(*row, "even") if i % 2 == 0 else row for i, row in enumerate(given.labels)]
    given.embedding[::2] += 2
    report = probe(LabeledFeatures("test", given.ids, given.embedding, labels, given.splits, given.groups))
    assert report["multi_label"]
    assert [row["name"] for row in report["probe"]["per_class"]] == ["Class0", "Class1", "Class2", "even"]
    assert report["probe"]["map"] > 0.95  # separable
    assert report["probe"]["auc"] > 0.95
    assert len(report["probe"]["cross_validation"]) == 6
    assert report["retrieval"]["hit@20"] == 1
    json.dumps(report, allow_nan=False)


def test_a_class_that_is_only_evaluated_is_never_right():
    given = features(noise=0.01)
    labels = [
        ("Other",) if i in np.flatnonzero(given.splits == "test")[:3] else row for i, row in enumerate(given.labels)
    ]
    report = probe(LabeledFeatures("test", given.ids, given.embedding, labels, given.splits, given.groups))
    assert report["probe"]["top1_accuracy"] == 0.9
    assert report["probe"]["per_class"][3]["recall"] == 0
    assert report["retrieval"]["queries_without_relevant"] == 3


def test_a_dataset(taught, capsys):
    assert main(["teacher", "probe", str(taught.folder), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    columns = taught.columns
    absent = ~columns["has_audio"].astype(bool) | columns["silent"].astype(bool)
    assert (report["train_split"], report["split"]) == ("train", "test")
    assert report["silence"] == {
        "clips": 35,
        "without_embedding": int(absent.sum()),
        "zero_embedding": 0,
        "without_audio": int((~columns["has_audio"]).sum()),
        "silent": int(columns["silent"].sum()),
    }
    labeled = sum(bool(taught.labels[i]) for i in np.flatnonzero(~absent & (columns["split"] == "train")))
    assert report["clips"] == {"train": labeled, "test": 5}
    assert {"hit@1", "map", "map@R"} <= set(report["retrieval"])
    words = ["teacher", "probe", str(taught.folder), "--teacher", "audio", "--train-split", "teacher"]
    assert main(words) == 0
    assert "trained on 9 clips of split 'teacher'" in capsys.readouterr().out
    assert dataset_features(taught).groups[0] == columns["path"][0]


def test_an_npz_file_through_the_command_line(tmp_path, capsys):
    file = write(tmp_path / "features.npz")
    assert main(["teacher", "probe", str(file)]) == 0
    told = capsys.readouterr().out
    assert "trained on 60 clips of split 'train', evaluated on 30 of 'test'; 3 classes" in told
    assert "probe.top1_accuracy" in told
    assert npz_features(file).groups[:3].tolist() == ["v_Class0_g00", "v_Class0_g00", "v_Class1_g00"]
    other = write(tmp_path / "other.npz", name=np.array([f"clip {i}" for i in range(90)]))
    assert npz_features(other).groups[1] == "clip 1"


@pytest.mark.parametrize(
    ("changed", "words", "message"),
    [
        ({"embedding": np.zeros((90, 2, 2), np.float32)}, [], "(clips, channels), found float32 (90, 2, 2)"),
        ({"embedding": np.zeros((90, 2), np.int64)}, [], "found int64 (90, 2)"),
        ({"embedding": np.zeros((80, 2), np.float32)}, [], "expected ids of 80 clips, found 90"),
        ({"embedding": np.full((90, 2), np.inf, np.float32)}, [], "v_Class0_g00_c0: its embedding is infinite"),
        ({"split": np.zeros(90)}, [], "split: expected strings of shape (N,), found float64 (90,)"),
        ({"label": np.array([None] * 90)}, [], "expected an .npz of plain arrays"),
        ({"split": np.array(["train"] * 90)}, [], "no clip in split 'test' or 'validation' (--split); splits"),
        ({}, ["--split", "elsewhere"], "no clip in split 'elsewhere' (--split); splits there: test, train"),
        ({}, ["--train-split", "x"], "no clip in split 'x' (--train-split)"),
        ({"label": np.array(["same"] * 90)}, [], "expected at least two classes"),
        ({"label": np.array([""] * 90)}, [], "split 'train': no labeled clip has an embedding"),
        ({"embedding": np.full((90, 2), np.nan, np.float32)}, [], "no labeled clip has an embedding"),
        ({"name": np.array(["v_A_g01_c01"] * 90)}, [], "expected at least two clips of a class, from two videos"),
    ],
)  # fmt: skip
def test_a_bad_file_is_one_line(tmp_path, capsys, changed, words, message):
    file = write(tmp_path / "features.npz", **changed)
    assert main(["teacher", "probe", str(file), *words]) == 1
    error = capsys.readouterr().err.strip().splitlines()
    assert [line for line in error if line.startswith("avdistill: ")] == error[-1:]
    assert message in error[-1]
    assert not any(line.startswith("Traceback") for line in error)


def test_other_wrong_calls_are_one_line(tmp_path, taught, prepared, capsys):
    np.savez(tmp_path / "less.npz", name=np.array(["a"]))
    (tmp_path / "text.npz").write_text("no archive")
    (tmp_path / "empty.npz").write_bytes(b"")
    file = write(tmp_path / "features.npz")
    for words, code, message in (
        ([tmp_path / "less.npz"], 1, "expected the array 'label', found name"),
        ([tmp_path / "text.npz"], 1, "expected an .npz of plain arrays"),
        ([tmp_path / "empty.npz"], 1, "expected an .npz of plain arrays"),
        ([tmp_path / "nothing.npz"], 1, "nothing.npz"),
        ([tmp_path / "nothing"], 1, "no dataset here"),
        ([prepared], 1, "no teacher in this dataset; add one with `avdistill embed`"),
        ([taught.folder, "--teacher", "video"], 1, "no teacher 'video' in this dataset (found: audio)"),
        ([file, "--teacher", "audio"], 2, "--teacher: an .npz file holds one teacher only"),
        ([file, "--split", "train"], 2, "'train' cannot both train the probe and evaluate it"),
    ):
        assert main(["teacher", "probe", *map(str, words)]) == code
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert error.startswith("avdistill: ")
        assert message in error
    assert main(["teacher", "dance"]) == 2
    assert capsys.readouterr().err.startswith("avdistill: teacher: no verb 'dance'; verbs: train, probe")
    assert main(["teacher", "--help"]) == 0
    assert "probe" in capsys.readouterr().out


def test_several_teachers_want_a_choice(taught, tmp_path):
    import shutil

    dataset = ClipDataset(shutil.copytree(taught.folder, tmp_path / "dataset"))
    embedding, _, _ = feature_arrays(dataset, "audio")
    dataset.add_features(
        "second", modality="audio", provenance={"name": "test"}, embedding=embedding, logits=None, classes=()
    )
    with pytest.raises(Exception, match="several teachers; choose one with --teacher: audio, second"):
        dataset_features(ClipDataset(dataset.folder))
    assert dataset_features(ClipDataset(dataset.folder), "second").present.all()


def test_errors_have_their_class():
    with pytest.raises(TeacherError, match="splits there: test, train"):
        probe(features(), split="validation")
    with pytest.raises(ConfigError):
        probe(features(), split="test", train_split="test")
