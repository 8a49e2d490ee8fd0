"""Audits: the truth's metrics against pairs of clips, what the verb writes, errors in one line."""

from __future__ import annotations

import csv
import json
import re
import shutil
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, roc_auc_score

from avdistill.analysis.audit.audit import TRUTHS, audit, truth_metrics
from avdistill.analysis.audit.scores import SCORES
from avdistill.cli import main
from avdistill.dataset.splits import clips_of_split
from avdistill.errors import DatasetError
from avdistill.methods.kd import KDConfig
from avdistill.methods.mnf_csc import MNFCSCConfig
from avdistill.training.setup import load_method
from support.audit_cases import by_id, changed, trained


@pytest.fixture(scope="module")
def runs(taught, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return {
        "mnf_csc": trained(taught, folder / "mnf_csc", MNFCSCConfig()),
        "kd": trained(taught, folder / "kd", KDConfig()),
    }


# The truth


def pairs_won(scores, positive):
    """AUROC by its definition: the share of pairs in which the positive scores higher, a tie counting half."""
    won = [
        1.0 if p > n else 0.5 if p == n else 0.0
        for p, yes in zip(scores, positive, strict=True) if yes
        for n, other in zip(scores, positive, strict=True) if not other
    ]  # fmt: skip
    return sum(won) / len(won)


def test_truth_metrics_against_pairs_and_sklearn():
    rng = np.random.default_rng(3)
    kinds = [*TRUTHS, "", "speech.wav"]
    rows = [
        dict.fromkeys(SCORES)
        | {"audio": kinds[int(rng.integers(len(kinds)))], "missing": "teacher" if i % 10 == 9 else ""}
        | {"labeled": i % 3 == 0, "mismatch_score": float(rng.integers(6)), "gate": float(rng.random())}
        for i in range(200)
    ]  # fmt: skip
    found = truth_metrics(rows)
    assert [(row["group"], row["score"]) for row in found["truth"]] == [
        (group, score) for group in ("labeled", "unlabeled") for score in ("mismatch_score", "gate")
    ]
    for metrics in found["truth"]:
        own = [
            row
            for row in rows
            if row["labeled"] is (metrics["group"] == "labeled") and row["audio"] in TRUTHS and not row["missing"]
        ]
        scores, positive = [row[metrics["score"]] for row in own], [row["audio"] == "mismatched" for row in own]
        assert (metrics["positives"], metrics["negatives"]) == (sum(positive), len(own) - sum(positive))
        assert metrics["auroc"] == pytest.approx(pairs_won(scores, positive))
        assert metrics["auroc"] == pytest.approx(roc_auc_score(positive, scores))
        assert metrics["average_precision"] == pytest.approx(average_precision_score(positive, scores))
        assert sum(found["known_truth"][metrics["group"]].values()) == len(own)


def test_truth_of_one_class_only_is_undefined():
    row = dict.fromkeys(SCORES) | {"labeled": True, "missing": "", "mismatch_score": 1.0}
    for kind, positives in (("mismatched", 1), ("related", 0)):
        (metrics,) = truth_metrics([row | {"audio": kind}])["truth"]
        assert metrics["auroc"] is None
        assert metrics["average_precision"] is None
        assert (metrics["positives"], metrics["negatives"]) == (positives, 1 - positives)
    assert truth_metrics([row | {"audio": ""}]) == {"known_truth": {}, "truth": []}


def test_the_truth_is_told_and_changes_no_score(taught, runs, tmp_path):
    truth = {
        f"train_{i}": {"audio": "mismatched" if i % 2 else "related", "audio_source": f"class:{i}", "true_label": "x"}
        for i in range(1, 15)
    }
    truth["train_15"] = {"audio": "a column of the user's own"}
    dataset = changed(taught, tmp_path / "dataset", {"extra": {name: list(t.items()) for name, t in truth.items()}})
    known, unknown = audit(runs["mnf_csc"], dataset), audit(runs["mnf_csc"], taught)
    hidden = ("audio", "audio_source", "true_label")
    assert all(row["end_seconds"] is None for row in known.rows)
    assert [{k: v for k, v in row.items() if k not in hidden} for row in known.rows] == [
        {k: v for k, v in row.items() if k not in hidden} for row in unknown.rows
    ]
    rows = by_id(known)
    assert [rows["train_3"][key] for key in hidden] == ["mismatched", "class:3", "x"]
    assert [rows["train_15"][key] for key in hidden] == [rows["train_17"][key] for key in hidden] == [""] * 3
    assert known.metrics["known_truth"] == {
        "labeled": {"related": 2, "mismatched": 4},
        "unlabeled": {"related": 2, "mismatched": 3},
    }
    assert unknown.metrics["truth"] == []
    gate = next(r for r in known.metrics["truth"] if (r["group"], r["score"]) == ("unlabeled", "gate"))
    names = [f"train_{i}" for i in (9, 10, 11, 13, 14)]
    assert gate["auroc"] == pytest.approx(
        pairs_won([rows[n]["gate"] for n in names], [int(n[6:]) % 2 == 1 for n in names])
    )


# The verb


def test_the_verb_writes_and_prints(taught, runs, tmp_path, capsys):
    out = tmp_path / "audit"
    call = ["audit", str(runs["mnf_csc"]), str(taught.folder), "--out", str(out), "--cards", "3"]
    assert main([*call, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["scored"] == 13
    assert {p.name for p in out.iterdir()} == {"clips.csv", "audit.json", "audit.html", "scores.png"}
    record = json.loads((out / "audit.json").read_text())
    assert record["metrics"]["scored"] == 13
    assert record["settings"]["by"] == "mismatch_score"
    assert record["environment"]["packages"]["torch"] == version("torch")
    with (out / "clips.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    expected = audit(runs["mnf_csc"], taught).rows
    assert [row["id"] for row in rows] == [row["id"] for row in expected]
    assert rows[-1]["rank"] == rows[-1]["gate"] == ""
    for row, want in zip(rows[:13], expected, strict=False):
        assert float(row["calibration"]) == pytest.approx(want["calibration"])
    assert main([*call, "--by", "gate"]) == 0
    shown = capsys.readouterr().out
    assert "13 of 20 clips of split 'train' scored (6 labeled, 7 unlabeled), 7 without a teacher" in shown
    assert main(["audit", str(runs["kd"]), str(taught.folder), "--split", "test"]) == 0
    assert (runs["kd"] / "audit-test" / "audit.html").is_file()


def test_few_ranked_clips_are_all_that_is_printed(taught, runs, tmp_path, capsys):
    clips = taught.columns["id"][clips_of_split(taught, "train")].tolist()
    dataset = changed(taught, tmp_path / "dataset", {"labels": {name: [] for name in clips[3:]}})
    call = ["audit", str(runs["kd"]), str(dataset.folder), "--by", "teacher_nll", "--out", str(tmp_path / "audit")]
    assert main(call) == 0
    ranked = [line for line in capsys.readouterr().out.splitlines() if re.match(r" {3}\d ", line)]
    assert 1 <= len(ranked) <= 3


@pytest.mark.parametrize(
    ("change", "message", "code"),
    [
        (lambda words, tmp: [tmp / "nothing", words[1]], "no run folder (config.json is missing)", 1),
        (lambda words, tmp: [words[0], tmp / "nothing"], "no dataset here", 1),
        (lambda words, _tmp: [*words, "--split", "nobody"], "no clip in split 'nobody'", 1),
        (lambda words, _tmp: [*words, "--by", "gate"], "it needs a run of method mnf_csc", 1),
        (lambda words, _tmp: [*words, "--cards", "-1"], "cards: must be at least 0", 2),
        (lambda words, _tmp: [*words, "--batch-size", "0"], "batch_size: must be at least 1", 2),
    ],
)
def test_wrong_calls_are_one_line(taught, runs, tmp_path, capsys, change, message, code):
    words = change([runs["kd"], taught.folder], tmp_path)
    assert main(["audit", *map(str, words)]) == code
    error = capsys.readouterr().err.strip().splitlines()
    assert message in error[-1]
    assert error[-1].startswith("avdistill: ")
    assert not (runs["kd"] / "audit-train").exists()


def test_a_damaged_run_is_one_line(taught, runs, tmp_path, capsys):
    for number, (damage, message) in enumerate(
        (
            (lambda run: shutil.rmtree(run / "last"), "no saved state (last/ is missing)"),
            (lambda run: (run / "data.json").unlink(), "data.json is missing or damaged"),
            (lambda run: (run / "last" / "helpers.safetensors").write_bytes(b"x"), "damaged"),
        )
    ):
        run = tmp_path / str(number)
        shutil.copytree(runs["mnf_csc"], run)
        damage(run)
        assert main(["audit", str(run), str(taught.folder)]) == 1
        assert message in capsys.readouterr().err.strip().splitlines()[-1]


def test_a_teacher_of_another_width_does_not_fit(taught, runs, tmp_path, capsys):
    wide = np.ones((len(taught), 30), np.float32)
    dataset = changed(taught, tmp_path / "dataset", embedding=wide)
    assert main(["audit", str(runs["mnf_csc"]), str(dataset.folder)]) == 1
    assert "does not fit MNFCSC" in capsys.readouterr().err


def test_a_label_the_student_does_not_know(taught, runs, tmp_path):
    dataset = changed(taught, tmp_path / "dataset", {"labels": {"train_1": ["cat"]}})
    with pytest.raises(DatasetError, match="label 'cat' is not among the classes"):
        audit(runs["kd"], dataset)


def test_saved_helpers_come_back(taught, runs):
    method, description = load_method(runs["mnf_csc"], taught)
    assert not method.training
    assert description.classes == taught.classes
    saved = Path(runs["mnf_csc"]) / "last" / "helpers.safetensors"
    from safetensors.torch import load_file

    tensors = load_file(saved)
    assert tensors
    state = method.state_dict()
    assert all(torch.equal(state[name], value) for name, value in tensors.items())
