"""Audits of runs of method robust: the doubt against naive loops over what the run saved, and what it ranks."""

from __future__ import annotations

import csv
import json
import math
from html.parser import HTMLParser

import pytest
import torch
from safetensors.torch import load_file

from audit_cases import LABELLED, UNLABELLED, VIEW, by_id, changed, trained
from avdistill.cli import main
from avdistill.data.transforms import evaluation_window
from avdistill.methods import KDConfig, RobustConfig
from avdistill.models.video import normalise_frames
from avdistill.studies.audit import audit
from avdistill.training.checkpoint import RunError
from avdistill.training.session import load_method

CONFIG = RobustConfig(temperature=1.5)


@pytest.fixture(scope="module")
def runs(taught, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return {
        "robust": trained(taught, folder / "robust", CONFIG),
        "kd": trained(taught, folder / "kd", KDConfig()),
    }


# The oracle: naive loops in float64 over what the run saved and what the networks say of one clip


def sounds_of(run):
    saved = load_file(run / "last" / "helpers.safetensors")
    sounds = {name.removeprefix("sounds."): values.double().tolist() for name, values in saved.items()}
    return sounds | {"training": json.loads((run / "data.json").read_text())["training"]}


def past_doubt(sounds, name):
    """1 - the mean over the visits that a clip had without its label; None where there were none."""
    i = sounds["training"].index(name) if name in sounds["training"] else None
    return None if i is None or not sounds["visits"][i] else 1 - sounds["judged"][i] / sounds["visits"][i]


def student_says(run, store, name):
    """The student's probabilities of a clip, a list: means over its windows."""
    method, description = load_method(run, store)
    frames = store.frames(store.columns["id"].tolist().index(name))
    windows = torch.stack([evaluation_window(frames, VIEW, 16000, start) for start in (0, 4, 8)])
    with torch.no_grad():
        logits = method.student(normalise_frames(windows)).logits
    return (logits.sigmoid() if description.multi_label else logits.softmax(1)).mean(0).double().tolist()


def doubt(sounds, known, logits, *, several=False):
    """1 - P(belongs) of a clip of which `known` is known, a list of C probabilities."""
    *heard, clips = sounds["heard"]
    related, told = sounds["related"]
    C, share = len(known), (related + 1) / (told + 2)
    usual = [(h + (0.5 if several else 1 / C)) / (clips + 1) for h in heard]
    logits = [z / CONFIG.temperature for z in logits]
    if several:
        t = [1 / (1 + math.exp(-z)) for z in logits]
        fit = 1.0
        for c in range(C):
            yes, no = known[c] * t[c] / usual[c], (1 - known[c]) * (1 - t[c]) / (1 - usual[c])
            fit *= yes + no
    else:
        t = [math.exp(z) / sum(math.exp(other) for other in logits) for z in logits]
        fit = sum(known[c] * t[c] / usual[c] for c in range(C))
    return (1 - share) / (share * fit + 1 - share)


def teacher_says(store, name):
    return store.teacher_features("sound")[1][store.columns["id"].tolist().index(name)].astype(float).tolist()


def hot(labels):
    return [float(f"class_{c}" in labels) for c in range(3)]


def test_doubt_is_that_of_the_loops(taught, runs):
    rows, sounds = by_id(audit(runs["robust"], taught)), sounds_of(runs["robust"])
    assert sounds["related"][1] > 0
    for name in (*LABELLED, *UNLABELLED):
        known = hot([f"class_{int(name[6:]) % 3}"]) if name in LABELLED else student_says(runs["robust"], taught, name)
        expected = doubt(sounds, known, teacher_says(taught, name))
        if name in UNLABELLED:
            expected = past_doubt(sounds, name) or expected
        assert 0 < expected < 1
        assert rows[name]["doubt"] == pytest.approx(expected, rel=1e-4)
    assert sum(past_doubt(sounds, name) is not None for name in UNLABELLED) >= 3
    assert len({rows[name]["doubt"] for name in (*LABELLED, *UNLABELLED)}) == 13
    assert all(row["doubt"] is None for row in rows.values() if row["missing"])


def test_in_another_split_clips_are_known_by_their_id(taught, runs, tmp_path):
    """A training clip that now stands elsewhere keeps its past; others have their label or the student."""
    run, sounds = runs["robust"], sounds_of(runs["robust"])
    trained_on = next(name for name in UNLABELLED if past_doubt(sounds, name) is not None)
    moved = {"train_1": "test", trained_on: "test"}
    store = changed(taught, tmp_path / "store", {"split": moved, "labels": {"test_1": [], "test_2": []}})
    rows = by_id(audit(run, store, split="test"))
    known = {name: student_says(run, store, name) for name in ("test_1", "test_2")}
    known |= {f"test_{i}": hot([f"class_{i % 3}"]) for i in (3, 4, 5)} | {"train_1": hot(["class_1"])}
    expected = {name: doubt(sounds, believed, teacher_says(store, name)) for name, believed in known.items()}
    expected[trained_on] = past_doubt(sounds, trained_on)
    assert {name: row["doubt"] for name, row in rows.items() if not row["missing"]} == pytest.approx(expected, rel=1e-4)
    # The other way round: those left behind stand at other rows of the split than when the run numbered them.
    before, left = by_id(audit(run, taught)), by_id(audit(run, store))
    for name in {*LABELLED, *UNLABELLED} - set(moved):
        assert left[name]["doubt"] == pytest.approx(before[name]["doubt"], rel=1e-6)


def test_several_labels(taught, tmp_path):
    several = {f"train_{i}": [f"class_{i % 3}", "class_0"] if i % 3 else ["class_0"] for i in range(9)}
    store = changed(taught, tmp_path / "store", {"labels": several})
    run = trained(store, tmp_path / "run", CONFIG)
    rows, sounds = by_id(audit(run, store)), sounds_of(run)
    for name in (*LABELLED, *UNLABELLED):
        known = hot(several[name]) if name in LABELLED else student_says(run, store, name)
        expected = doubt(sounds, known, teacher_says(store, name), several=True)
        if name in UNLABELLED:
            expected = past_doubt(sounds, name) or expected
        assert rows[name]["doubt"] == pytest.approx(expected, rel=1e-4)


def test_suspicion_is_the_doubt_of_all_clips_on_one_scale(taught, runs, tmp_path):
    result = audit(runs["robust"], taught)
    ranked = [row for row in result.rows if row["rank"] is not None]
    assert [row["suspicion"] for row in ranked] == [row["doubt"] for row in ranked]
    assert [row["doubt"] for row in ranked] == sorted((row["doubt"] for row in ranked), reverse=True)
    assert [row["percentile"] for row in ranked] == pytest.approx([(13 - i - 0.5) / 13 for i in range(13)])
    assert result.figures["suspicion_from"] == {"labelled": "doubt", "unlabelled": "doubt"}
    assert not result.figures["merged_by_percentile"]
    # No label in the split, so no score of labels either.
    nobody = {"labels": {name: [] for name in taught.columns["id"].tolist() if name.startswith("test")}}
    rows = audit(runs["robust"], changed(taught, tmp_path / "store", nobody), split="test").rows
    assert [row["suspicion"] is not None for row in rows] == [True] * 5 + [False]
    assert [row["suspicion"] for row in rows] == [row["doubt"] for row in rows]


def test_other_methods_have_no_doubt(taught, runs, capsys):
    result = audit(runs["kd"], taught)
    assert all(row["doubt"] is None for row in result.rows)
    assert result.figures["suspicion_from"] == {"labelled": "teacher_label", "unlabelled": "student_teacher"}
    with pytest.raises(RunError, match="cannot rank by 'doubt': it needs a run of method robust"):
        audit(runs["kd"], taught, by="doubt")
    assert main(["audit", str(runs["kd"]), str(taught.folder), "--by", "doubt"]) == 1
    assert "it needs a run of method robust" in capsys.readouterr().err.strip().splitlines()[-1]
    assert not (runs["kd"] / "audit-train").exists()


def test_what_a_run_of_robust_is_refused_for(taught, runs, tmp_path):
    with pytest.raises(RunError, match="has a teacher of its own, 'sound'"):
        audit(runs["robust"], taught, teacher="other")
    store = changed(taught, tmp_path / "store", logits=None, classes=())
    with pytest.raises(RunError, match="'sound' has no logits in the student's classes"):
        audit(runs["robust"], store)


class Words(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.words = []
        self.feed(text)

    def handle_data(self, data):
        self.words.append(data.strip())


def test_table_truth_and_page_tell_the_doubt(taught, runs, tmp_path, capsys):
    truth = {f"train_{i}": [("sound", "unrelated" if i % 2 else "related")] for i in range(18)}
    store = changed(taught, tmp_path / "store", {"extra": truth})
    out = tmp_path / "audit"
    call = ["audit", str(runs["robust"]), str(store.folder), "--by", "doubt", "--out", str(out), "--cards", "2"]
    assert main(call) == 0
    assert "labelled   doubt" in capsys.readouterr().out
    with (out / "clips.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["rank"]]
    values = {row["id"]: float(row["doubt"]) for row in rows}
    assert list(values.values()) == sorted(values.values(), reverse=True)
    found = json.loads((out / "audit.json").read_text())["figures"]["truth"]
    figures = {row["score"]: row["auroc"] for row in found if row["group"] == "unlabelled"}
    odd = {kind: [values[name] for name in UNLABELLED if int(name[6:]) % 2 == kind] for kind in (0, 1)}
    won = sum(a > b for a in odd[1] for b in odd[0]) / (len(odd[0]) * len(odd[1]))
    assert figures["doubt"] == figures["suspicion"] == pytest.approx(won)
    words = Words((out / "audit.html").read_text()).words
    assert words.count("1 − p(both belong together)") == 2 + 2 + 8  # rows of the truth, cards
