"""The metrics of benchmarks/results/study.py, from runs made up by hand."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from avdistill.dataset.splits import clips_of_split
from avdistill.inputs import VideoInput
from avdistill.training import ModelConfig, train

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks" / "results"))

import study
from study_metrics import Metrics

FILE = "model.safetensors"
CLIPS = {"grid": {"video": list("aabbccddee"), "label": ["x"] * 8 + ["y"] * 2, "labeled_classes": {"20": ["x"]}}}
CLIPS["grid"]["labeled_classes"] |= {"400": ["x", "y"]}


def run(method, seed, correct, *, labeled=20, wrong=0.0, audit=None):
    right = correct.count("1") / len(correct)
    told = {"data": "grid", "labeled_clips": labeled, "wrong_audio": wrong, "method": method, "seed": seed}
    metrics = {"top1_accuracy": right, "mean_class_accuracy": right, "map": 0.5, "correct": correct, "seconds": 1.0}
    return told | metrics | ({} if audit is None else {"audit": audit})


RUNS = [
    run("supervised", 0, "1100000000"),
    run("supervised", 1, "1111000000"),
    run("supervised", 0, "1111111100", labeled=400),
    run("kd", 0, "1111110000"),
    run("kd", 1, "1111110000"),
    run("kd", 0, "1111000000", wrong=0.4),
    run("kd", 1, "1111000000", wrong=0.4),
    run("robust", 0, "1111111000"),
    run("robust", 0, "1111110000", wrong=0.4),
    run("robust", 1, "1111110010", wrong=0.4),
]


@pytest.fixture
def metrics():
    return Metrics(study.study_rows(RUNS), CLIPS)


def test_what_hears_nothing_stands_under_every_audio(metrics):
    assert metrics.top1_accuracy(("grid", 20, 0.0), "supervised") == pytest.approx(0.3)
    assert metrics.top1_accuracy(("grid", 20, 0.4), "supervised") == pytest.approx(0.3)
    rows = study.study_rows(RUNS)
    assert [r["corruption"] for r in rows if r["method"] == "supervised" and r["seed"] == 1] == ["clean", "mismatched"]
    assert all((r["corruption"] == "mismatched") == (r["wrong_audio"] > 0) for r in rows)


def test_every_setting_that_is_tried_is_one():
    datasets = SimpleNamespace(folder=Path("dataset"))
    for name, settings in study.TRIALS.items():
        jobs = [study.make_job(name, s, study.GRID, datasets, Path("out"), 0, {"method": name}) for s in settings]
        assert len({job.config.method for job in jobs}) == len(settings)
        assert len({job.config.out for job in jobs}) == len(settings)


def test_gap_and_what_is_kept(metrics):
    closed = {row["method"]: row["closed"] for row in metrics.gap_closed("grid", 20, 400)}
    assert closed == {"kd": pytest.approx(0.3 / 0.5), "robust": pytest.approx(0.4 / 0.5)}
    kept = {row["method"]: row["kept"] for row in metrics.gain_kept("grid", 20, 0.4)}
    assert kept == {"kd": pytest.approx(0.1 / 0.3), "robust": pytest.approx(0.35 / 0.4)}
    assert metrics.gap_closed("grid", 70, 400) == []


def test_a_run_without_unlabeled_clips_stands_for_what_differs_on_those_only():
    rows = [r for r in study.study_rows(RUNS) if r["labeled_clips"] == 400]
    assert {(r["method"], r["wrong_audio"]) for r in rows} == {
        (method, wrong) for method in ("supervised", "pseudo_label", "robust") for wrong in (0.0, 0.4)
    }
    assert {r["top1_accuracy"] for r in rows} == {0.8}


@pytest.mark.parametrize("name", study.FOR_UNLABELED)
def test_and_it_is_that_run_bit_by_bit(many_clips, tmp_path, name):
    assert all(many_clips.labels[i] for i in clips_of_split(many_clips, "train"))

    def weights(method):
        view = VideoInput(frames=4, size=(20, 24), hflip=False, resize=False)
        told = {"data": "grid", "labeled_clips": 400, "wrong_audio": 0.0, "method": method, "seed": 3}
        base = replace(
            study.GRID,
            student=ModelConfig("stacked_frames", view, {"frames": 4, "width": 8, "embedding_dim": 16}),
            steps=4,
            batch_size=6,
            labeled_per_batch=2,
        )
        return load_file(train(study.make_job(method, "", base, many_clips, tmp_path, 3, told).config) / "last" / FILE)

    expected, found = weights("supervised"), weights(name)
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[key], found[key]) for key in expected)


def test_differences_are_paired_over_common_seeds(metrics):
    found, seeds = metrics.difference(("grid", 20, 0.0), "robust", "kd")
    assert (found.mean, seeds) == (pytest.approx(0.1), 1)  # robust has one seed under clean audio
    rows = {
        (r["labeled_clips"], r["wrong_audio"], r["against"]): r for r in metrics.against("robust", ("kd", "supervised"))
    }
    assert rows[20, 0.4, "kd"]["difference"] == pytest.approx(0.25)
    assert (400, 0.0, "kd") not in rows


@pytest.mark.parametrize(("mine", "theirs", "verdict"), [("1" * 10, "0" * 10, "ahead"), ("0" * 10, "1" * 10, "worse")])
def test_verdicts(mine, theirs, verdict):
    two = Metrics([run("robust", 0, mine), run("kd", 0, theirs)], CLIPS)
    assert [row["verdict"] for row in two.against("robust", ("kd",))] == [verdict]
    same = Metrics([run("robust", 0, mine), run("kd", 0, mine)], CLIPS)
    assert [row["verdict"] for row in same.against("robust", ("kd",))] == ["level"]


def test_classes_without_a_label_are_told_apart(metrics):
    rows = {(r["labeled_clips"], r["wrong_audio"], r["method"]): r for r in metrics.accuracy("grid")}
    assert rows[20, 0.4, "robust"]["top1_labeled_classes"] == pytest.approx(12 / 16)
    assert rows[20, 0.4, "robust"]["top1_other_classes"] == pytest.approx(1 / 4)
    assert "top1_other_classes" not in rows[400, 0.0, "supervised"]
    assert rows[20, 0.0, "kd"]["top1_accuracy_std"] == 0
    assert rows[20, 0.0, "robust"]["top1_accuracy_std"] is None


def test_what_audits_found_is_averaged_by_group():
    def line(group, auroc, score="mismatch_score"):
        return {"group": group, "score": score, "auroc": auroc, "average_precision": auroc / 2}

    runs = [
        run(
            "robust",
            seed,
            "1" * 10,
            wrong=0.4,
            audit=[line("unlabeled", a), line("labeled", 1.0), line("unlabeled", 0, "gate")],
        )
        for seed, a in enumerate((0.8, 0.9))
    ]
    found = {row["clips"]: row for row in Metrics(runs, CLIPS).found()}
    assert found["unlabeled"]["auroc"] == pytest.approx(0.85)
    assert found["unlabeled"]["average_precision"] == pytest.approx(0.425)
    assert (found["labeled"]["auroc"], found["labeled"]["seeds"]) == (1.0, 2)


def test_what_was_asked_is_met_or_not():
    """Of ten clips: no distillation is right about 2, with all labels 8; robust 7, with mismatched audio 6."""
    right = {("supervised", 0.0): 2, ("kd", 0.0): 4, ("kd", 0.4): 0, ("pseudo_label", 0.0): 6, ("pseudo_label", 0.4): 6}
    right |= {("robust", 0.0): 7, ("robust", 0.4): 6}
    found = [{"group": "unlabeled", "score": "mismatch_score", "auroc": 0.89, "average_precision": 0.5}]
    runs = [
        run(method, seed, "1" * n + "0" * (10 - n), labeled=few, wrong=wrong, audit=found if wrong else None)
        for (method, wrong), n in right.items()
        for few in (20, 70)
        for seed in (0, 1)
    ]
    runs += [run("supervised", seed, "1" * 8 + "00", labeled=400) for seed in (0, 1)]
    known = {"grid": CLIPS["grid"] | {"labeled_classes": {"20": ["x"], "70": ["x"], "400": ["x", "y"]}}}
    rows = Metrics(study.study_rows(runs), known).asked()
    told = [(row["found"].split(" (")[0], row["met"]) for row in rows if row["labeled_videos"] == 70]
    assert told == [
        ("robust 0.83", "yes"),
        ("0.80", "yes"),
        ("+0.000", "**no**"),
        ("+0.600", "yes"),
        ("0.890", "**no**"),
    ]
    assert rows[-1]["found"].startswith("least gain: grid, 40% mismatched: +0.400 (")
    assert rows[-1]["met"] == "yes"


def test_means_have_gaps_where_nothing_was_run(metrics):
    rows = metrics.means({"a": ("grid", 20, 0.4), "b": ("grid", 400, 0.0)})
    assert rows[0] == {"method": "supervised", "a": pytest.approx(0.3), "b": pytest.approx(0.8)}
    assert {row["method"]: row["b"] for row in rows}["kd"] is None


def test_the_csv_files_are_what_was_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(study, "RESULTS", tmp_path / "study")
    study.RESULTS.mkdir()
    lines = [json.dumps(r) + "\n" for r in RUNS]
    (study.RESULTS / "runs.jsonl").write_text("".join(lines))
    study.report(None)
    table = (tmp_path / "study.csv").read_text().splitlines()
    assert table[0] == "data,corruption,labeled_clips,wrong_audio,method,seed,top1_accuracy,mean_class_accuracy,seconds"
    assert len(table) == 1 + len(RUNS) + 2 + 5  # supervised twice; with every label it is six runs
    assert (
        (tmp_path / "audit.csv").read_text().startswith("data,labeled,wrong_audio,method,seed,auroc,average_precision")
    )


def test_a_setting_is_chosen_by_its_mean_over_the_seeds_and_the_published_one_if_equal():
    metrics = {("kd", ""): (0.5, 0.3), ("kd", "weight=3.0"): (0.6, 0.1), ("ccl", "weight=0.1"): (0.2, 0.4)}
    metrics |= {("ccl", "weight=0.3"): (0.4, 0.2)}
    rows = [
        {"method": method, "setting": setting, "seed": seed, "top1_accuracy": top1_accuracy}
        for (method, setting), both in metrics.items()
        for seed, top1_accuracy in enumerate(both)
    ]
    assert study.best_settings(rows) == {"kd": "", "ccl": "weight=0.1"}
    with pytest.raises(ValueError, match="same seed"):
        study.best_settings([*rows, rows[0]])
