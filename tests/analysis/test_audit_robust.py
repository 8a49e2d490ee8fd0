"""Audits of runs of method robust: the mismatch_probability against naive loops over what the run saved, and what it
ranks.
"""

from __future__ import annotations

import csv
import json
import math
from html.parser import HTMLParser

import pytest
import torch
from safetensors.torch import load_file

from avdistill.analysis.audit.audit import audit
from avdistill.cli import main
from avdistill.dataset.windows import evaluation_window
from avdistill.errors import RunError
from avdistill.inputs import normalize_frames
from avdistill.methods.kd import KDConfig
from avdistill.methods.robust import RobustConfig
from avdistill.training.setup import load_method
from support.audit_cases import LABELED, UNLABELED, VIEW, by_id, changed, trained
from support.features import feature_arrays

CONFIG = RobustConfig(temperature=1.5)


@pytest.fixture(scope="module")
def runs(taught, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return {"robust": trained(taught, folder / "robust", CONFIG), "kd": trained(taught, folder / "kd", KDConfig())}


# The oracle: naive loops in float64 over what the run saved and what the networks say of one clip


def audio_of(run):
    saved = load_file(run / "last" / "helpers.safetensors")
    noise_model = {name.removeprefix("noise_model."): values.double().tolist() for name, values in saved.items()}
    return noise_model | {"training": json.loads((run / "data.json").read_text())["training"]}


def past_mismatch_probability(noise_model, name):
    """1 - the mean over the visits that a clip had without its label; None where there were none."""
    i = noise_model["training"].index(name) if name in noise_model["training"] else None
    return (
        None
        if i is None or not noise_model["visits"][i]
        else 1 - noise_model["posterior_sum"][i] / noise_model["visits"][i]
    )


def student_says(run, dataset, name):
    """The student's probabilities of a clip, a list: means over its windows."""
    method, description = load_method(run, dataset)
    frames = dataset.frames(dataset.columns["id"].tolist().index(name))
    windows = torch.stack([evaluation_window(frames, VIEW, 16000, start) for start in (0, 4, 8)])
    with torch.no_grad():
        logits = method.student(normalize_frames(windows)).logits
    return (logits.sigmoid() if description.multi_label else logits.softmax(1)).mean(0).double().tolist()


def mismatch_probability(noise_model, class_logits, logits, *, several=False):
    """1 - P(belongs) of a clip of which `class_logits` is class_logits, a list of C probabilities."""
    *prior_counts, clips = noise_model["prior_counts"]
    clean_counts, told = noise_model["clean_counts"]
    C, share = len(class_logits), (clean_counts + 1) / (told + 2)
    class_prior = [(h + (0.5 if several else 1 / C)) / (clips + 1) for h in prior_counts]
    logits = [z / CONFIG.temperature for z in logits]
    if several:
        t = [1 / (1 + math.exp(-z)) for z in logits]
        log_ratio = 1.0
        for c in range(C):
            yes, no = class_logits[c] * t[c] / class_prior[c], (1 - class_logits[c]) * (1 - t[c]) / (1 - class_prior[c])
            log_ratio *= yes + no
    else:
        t = [math.exp(z) / sum(math.exp(other) for other in logits) for z in logits]
        log_ratio = sum(class_logits[c] * t[c] / class_prior[c] for c in range(C))
    return (1 - share) / (share * log_ratio + 1 - share)


def teacher_says(dataset, name):
    return feature_arrays(dataset, "audio")[1][dataset.columns["id"].tolist().index(name)].astype(float).tolist()


def hot(labels):
    return [float(f"class_{c}" in labels) for c in range(3)]


def test_mismatch_probability_is_that_of_the_loops(taught, runs):
    rows, noise_model = by_id(audit(runs["robust"], taught)), audio_of(runs["robust"])
    assert noise_model["clean_counts"][1] > 0
    for name in (*LABELED, *UNLABELED):
        class_logits = (
            hot([f"class_{int(name[6:]) % 3}"]) if name in LABELED else student_says(runs["robust"], taught, name)
        )
        expected = mismatch_probability(noise_model, class_logits, teacher_says(taught, name))
        if name in UNLABELED:
            expected = past_mismatch_probability(noise_model, name) or expected
        assert 0 < expected < 1
        assert rows[name]["mismatch_probability"] == pytest.approx(expected, rel=1e-4)
    assert sum(past_mismatch_probability(noise_model, name) is not None for name in UNLABELED) >= 3
    assert len({rows[name]["mismatch_probability"] for name in (*LABELED, *UNLABELED)}) == 13
    assert all(row["mismatch_probability"] is None for row in rows.values() if row["missing"])


def test_in_another_split_clips_are_known_by_their_id(taught, runs, tmp_path):
    """A training clip that now stands elsewhere keeps its past; others have their label or the student."""
    run, noise_model = runs["robust"], audio_of(runs["robust"])
    trained_on = next(name for name in UNLABELED if past_mismatch_probability(noise_model, name) is not None)
    moved = {"train_1": "test", trained_on: "test"}
    dataset = changed(taught, tmp_path / "dataset", {"split": moved, "labels": {"test_1": [], "test_2": []}})
    rows = by_id(audit(run, dataset, split="test"))
    class_logits = {name: student_says(run, dataset, name) for name in ("test_1", "test_2")}
    class_logits |= {f"test_{i}": hot([f"class_{i % 3}"]) for i in (3, 4, 5)} | {"train_1": hot(["class_1"])}
    expected = {
        name: mismatch_probability(noise_model, believed, teacher_says(dataset, name))
        for name, believed in class_logits.items()
    }
    expected[trained_on] = past_mismatch_probability(noise_model, trained_on)
    assert {name: row["mismatch_probability"] for name, row in rows.items() if not row["missing"]} == pytest.approx(
        expected, rel=1e-4
    )
    # The other way round: those left behind stand at other rows of the split than when the run numbered them.
    before, left = by_id(audit(run, taught)), by_id(audit(run, dataset))
    for name in {*LABELED, *UNLABELED} - set(moved):
        assert left[name]["mismatch_probability"] == pytest.approx(before[name]["mismatch_probability"], rel=1e-6)


def test_several_labels(taught, tmp_path):
    several = {f"train_{i}": [f"class_{i % 3}", "class_0"] if i % 3 else ["class_0"] for i in range(9)}
    dataset = changed(taught, tmp_path / "dataset", {"labels": several})
    run = trained(dataset, tmp_path / "run", CONFIG)
    rows, noise_model = by_id(audit(run, dataset)), audio_of(run)
    for name in (*LABELED, *UNLABELED):
        class_logits = hot(several[name]) if name in LABELED else student_says(run, dataset, name)
        expected = mismatch_probability(noise_model, class_logits, teacher_says(dataset, name), several=True)
        if name in UNLABELED:
            expected = past_mismatch_probability(noise_model, name) or expected
        assert rows[name]["mismatch_probability"] == pytest.approx(expected, rel=1e-4)


def test_mismatch_score_is_the_mismatch_probability_of_all_clips_on_one_scale(taught, runs, tmp_path):
    result = audit(runs["robust"], taught)
    ranked = [row for row in result.rows if row["rank"] is not None]
    assert [row["mismatch_score"] for row in ranked] == [row["mismatch_probability"] for row in ranked]
    assert [row["mismatch_probability"] for row in ranked] == sorted(
        (row["mismatch_probability"] for row in ranked), reverse=True
    )
    assert [row["percentile"] for row in ranked] == pytest.approx([(13 - i - 0.5) / 13 for i in range(13)])
    assert result.metrics["mismatch_score_from"] == {
        "labeled": "mismatch_probability",
        "unlabeled": "mismatch_probability",
    }
    assert not result.metrics["merged_by_percentile"]
    # No label in the split, so no score of labels either.
    nobody = {"labels": {name: [] for name in taught.columns["id"].tolist() if name.startswith("test")}}
    rows = audit(runs["robust"], changed(taught, tmp_path / "dataset", nobody), split="test").rows
    assert [row["mismatch_score"] is not None for row in rows] == [True] * 5 + [False]
    assert [row["mismatch_score"] for row in rows] == [row["mismatch_probability"] for row in rows]


def test_other_methods_have_no_mismatch_probability(taught, runs, capsys):
    result = audit(runs["kd"], taught)
    assert all(row["mismatch_probability"] is None for row in result.rows)
    assert result.metrics["mismatch_score_from"] == {"labeled": "teacher_nll", "unlabeled": "disagreement"}
    with pytest.raises(RunError, match="cannot rank by 'mismatch_probability': it needs a run of method robust"):
        audit(runs["kd"], taught, by="mismatch_probability")
    assert main(["audit", str(runs["kd"]), str(taught.folder), "--by", "mismatch_probability"]) == 1
    assert "it needs a run of method robust or robust_csc" in capsys.readouterr().err.strip().splitlines()[-1]
    assert not (runs["kd"] / "audit-train").exists()


def test_what_a_run_of_robust_is_refused_for(taught, runs, tmp_path):
    with pytest.raises(RunError, match="trained with teacher 'audio'"):
        audit(runs["robust"], taught, teacher="other")
    dataset = changed(taught, tmp_path / "dataset", logits=None, classes=())
    with pytest.raises(RunError, match="'audio' has no logits in the student's classes"):
        audit(runs["robust"], dataset)


class Words(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.words = []
        self.feed(text)

    def handle_data(self, data):
        self.words.append(data.strip())


def test_table_truth_and_page_tell_the_mismatch_probability(taught, runs, tmp_path, capsys):
    truth = {f"train_{i}": [("audio", "mismatched" if i % 2 else "related")] for i in range(18)}
    dataset = changed(taught, tmp_path / "dataset", {"extra": truth})
    out = tmp_path / "audit"
    call = [
        "audit",
        str(runs["robust"]),
        str(dataset.folder),
        "--by",
        "mismatch_probability",
        "--out",
        str(out),
        "--cards",
        "2",
    ]
    assert main(call) == 0
    assert "mismatch_probability" in capsys.readouterr().out
    with (out / "clips.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["rank"]]
    values = {row["id"]: float(row["mismatch_probability"]) for row in rows}
    assert list(values.values()) == sorted(values.values(), reverse=True)
    found = json.loads((out / "audit.json").read_text())["metrics"]["truth"]
    metrics = {row["score"]: row["auroc"] for row in found if row["group"] == "unlabeled"}
    odd = {kind: [values[name] for name in UNLABELED if int(name[6:]) % 2 == kind] for kind in (0, 1)}
    won = sum(a > b for a in odd[1] for b in odd[0]) / (len(odd[0]) * len(odd[1]))
    assert metrics["mismatch_probability"] == metrics["mismatch_score"] == pytest.approx(won)
    words = Words((out / "audit.html").read_text()).words
    assert words.count("p(mismatched)") == 2 + 2 + 8  # rows of the truth, cards
