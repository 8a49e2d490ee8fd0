"""The figures of benchmarks/study.py, from runs made up by hand."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from avdistill.data.dataset import clips_of_split
from avdistill.training import StudentConfig, train
from avdistill.types import PictureView

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

import study
from study_figures import Figures

FILE = "student.safetensors"
CLIPS = {"grid": {"video": list("aabbccddee"), "label": ["x"] * 8 + ["y"] * 2, "labelled_classes": {"20": ["x"]}}}
CLIPS["grid"]["labelled_classes"] |= {"400": ["x", "y"]}


def run(method, seed, correct, *, labelled=20, wrong=0.0, audit=None):
    right = correct.count("1") / len(correct)
    told = {"data": "grid", "labelled_clips": labelled, "wrong_sound": wrong, "method": method, "seed": seed}
    figures = {"top1": right, "mean_class_accuracy": right, "map": 0.5, "correct": correct, "seconds": 1.0}
    return told | figures | ({} if audit is None else {"audit": audit})


RUNS = [
    run("supervised", 0, "1100000000"),
    run("supervised", 1, "1111000000"),
    run("supervised", 0, "1111111100", labelled=400),
    run("kd", 0, "1111110000"),
    run("kd", 1, "1111110000"),
    run("kd", 0, "1111000000", wrong=0.4),
    run("kd", 1, "1111000000", wrong=0.4),
    run("robust", 0, "1111111000"),
    run("robust", 0, "1111110000", wrong=0.4),
    run("robust", 1, "1111110010", wrong=0.4),
]


@pytest.fixture
def figures():
    return Figures(study.study_rows(RUNS), CLIPS)


def test_what_hears_nothing_stands_under_every_sound(figures):
    assert figures.top1(("grid", 20, 0.0), "supervised") == pytest.approx(0.3)
    assert figures.top1(("grid", 20, 0.4), "supervised") == pytest.approx(0.3)
    rows = study.study_rows(RUNS)
    assert [r["condition"] for r in rows if r["method"] == "supervised" and r["seed"] == 1] == ["clean", "swapped"]
    assert all((r["condition"] == "swapped") == (r["wrong_sound"] > 0) for r in rows)


def test_every_setting_that_is_tried_is_one():
    stores = SimpleNamespace(folder=Path("store"))
    for name, settings in study.TRIALS.items():
        jobs = [study.make_job(name, s, study.GRID, stores, Path("out"), 0, {"method": name}) for s in settings]
        assert len({job.config.method for job in jobs}) == len(settings)
        assert len({job.config.out for job in jobs}) == len(settings)


def test_gap_and_what_is_kept(figures):
    closed = {row["method"]: row["closed"] for row in figures.gap_closed("grid", 20, 400)}
    assert closed == {"kd": pytest.approx(0.3 / 0.5), "robust": pytest.approx(0.4 / 0.5)}
    kept = {row["method"]: row["kept"] for row in figures.gain_kept("grid", 20, 0.4)}
    assert kept == {"kd": pytest.approx(0.1 / 0.3), "robust": pytest.approx(0.35 / 0.4)}
    assert figures.gap_closed("grid", 70, 400) == []


def test_a_run_without_unlabelled_clips_stands_for_what_differs_on_those_only():
    rows = [r for r in study.study_rows(RUNS) if r["labelled_clips"] == 400]
    assert {(r["method"], r["wrong_sound"]) for r in rows} == {
        (method, wrong) for method in ("supervised", "pseudo_label", "robust") for wrong in (0.0, 0.4)
    }
    assert {r["top1"] for r in rows} == {0.8}


@pytest.mark.parametrize("name", study.FOR_UNLABELLED)
def test_and_it_is_that_run_bit_by_bit(many_clips, tmp_path, name):
    assert all(many_clips.labels[i] for i in clips_of_split(many_clips, "train"))

    def weights(method):
        view = PictureView(frames=4, size=(20, 24), flip=False, resize=False)
        told = {"data": "grid", "labelled_clips": 400, "wrong_sound": 0.0, "method": method, "seed": 3}
        base = replace(
            study.GRID,
            student=StudentConfig("stacked_frames", view, {"frames": 4, "width": 8, "embedding_dim": 16}),
            steps=4,
            batch_size=6,
            labelled_per_batch=2,
        )
        return load_file(train(study.make_job(method, "", base, many_clips, tmp_path, 3, told).config) / "last" / FILE)

    expected, found = weights("supervised"), weights(name)
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[key], found[key]) for key in expected)


def test_differences_are_paired_over_common_seeds(figures):
    found, seeds = figures.difference(("grid", 20, 0.0), "robust", "kd")
    assert (found.mean, seeds) == (pytest.approx(0.1), 1)  # robust has one seed under clean sound
    rows = {
        (r["labelled_clips"], r["wrong_sound"], r["against"]): r
        for r in figures.against("robust", ("kd", "supervised"))
    }
    assert rows[20, 0.4, "kd"]["difference"] == pytest.approx(0.25)
    assert (400, 0.0, "kd") not in rows


@pytest.mark.parametrize(("mine", "theirs", "verdict"), [("1" * 10, "0" * 10, "ahead"), ("0" * 10, "1" * 10, "worse")])
def test_verdicts(mine, theirs, verdict):
    two = Figures([run("robust", 0, mine), run("kd", 0, theirs)], CLIPS)
    assert [row["verdict"] for row in two.against("robust", ("kd",))] == [verdict]
    same = Figures([run("robust", 0, mine), run("kd", 0, mine)], CLIPS)
    assert [row["verdict"] for row in same.against("robust", ("kd",))] == ["level"]


def test_classes_without_a_label_are_told_apart(figures):
    rows = {(r["labelled_clips"], r["wrong_sound"], r["method"]): r for r in figures.accuracy("grid")}
    assert rows[20, 0.4, "robust"]["top1_labelled_classes"] == pytest.approx(12 / 16)
    assert rows[20, 0.4, "robust"]["top1_other_classes"] == pytest.approx(1 / 4)
    assert "top1_other_classes" not in rows[400, 0.0, "supervised"]
    assert rows[20, 0.0, "kd"]["top1_std"] == 0
    assert rows[20, 0.0, "robust"]["top1_std"] is None


def test_what_audits_found_is_averaged_by_group():
    def line(group, auroc, score="suspicion"):
        return {"group": group, "score": score, "auroc": auroc, "average_precision": auroc / 2}

    runs = [
        run(
            "robust",
            seed,
            "1" * 10,
            wrong=0.4,
            audit=[line("unlabelled", a), line("labelled", 1.0), line("unlabelled", 0, "gate")],
        )
        for seed, a in enumerate((0.8, 0.9))
    ]
    found = {row["clips"]: row for row in Figures(runs, CLIPS).found()}
    assert found["unlabelled"]["auroc"] == pytest.approx(0.85)
    assert found["unlabelled"]["average_precision"] == pytest.approx(0.425)
    assert (found["labelled"]["auroc"], found["labelled"]["seeds"]) == (1.0, 2)


def test_what_was_asked_is_met_or_not():
    """Of ten clips: no distillation is right about 2, with all labels 8; robust 7, with swapped sound 6."""
    right = {("supervised", 0.0): 2, ("kd", 0.0): 4, ("kd", 0.4): 0, ("pseudo_label", 0.0): 6, ("pseudo_label", 0.4): 6}
    right |= {("robust", 0.0): 7, ("robust", 0.4): 6}
    found = [{"group": "unlabelled", "score": "suspicion", "auroc": 0.89, "average_precision": 0.5}]
    runs = [
        run(method, seed, "1" * n + "0" * (10 - n), labelled=few, wrong=wrong, audit=found if wrong else None)
        for (method, wrong), n in right.items()
        for few in (20, 70)
        for seed in (0, 1)
    ]
    runs += [run("supervised", seed, "1" * 8 + "00", labelled=400) for seed in (0, 1)]
    known = {"grid": CLIPS["grid"] | {"labelled_classes": {"20": ["x"], "70": ["x"], "400": ["x", "y"]}}}
    rows = Figures(study.study_rows(runs), known).asked()
    told = [(row["found"].split(" (")[0], row["met"]) for row in rows if row["labelled_videos"] == 70]
    assert told == [
        ("robust 0.83", "yes"),
        ("0.80", "yes"),
        ("+0.000", "**no**"),
        ("+0.600", "yes"),
        ("0.890", "**no**"),
    ]
    assert rows[-1]["found"].startswith("least gain: grid, 40% swapped: +0.400 (")
    assert rows[-1]["met"] == "yes"


def test_means_have_gaps_where_nothing_was_run(figures):
    rows = figures.means({"a": ("grid", 20, 0.4), "b": ("grid", 400, 0.0)})
    assert rows[0] == {"method": "supervised", "a": pytest.approx(0.3), "b": pytest.approx(0.8)}
    assert {row["method"]: row["b"] for row in rows}["kd"] is None


def test_the_csv_files_are_what_was_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(study, "RESULTS", tmp_path / "study")
    study.RESULTS.mkdir()
    lines = [json.dumps(r) + "\n" for r in RUNS]
    (study.RESULTS / "runs.jsonl").write_text("".join(lines))
    study.report(None)
    table = (tmp_path / "study.csv").read_text().splitlines()
    assert table[0] == "data,condition,labelled_clips,wrong_sound,method,seed,top1,mean_class_accuracy,seconds"
    assert len(table) == 1 + len(RUNS) + 2 + 5  # supervised twice; with every label it is six runs
    assert (
        (tmp_path / "audit.csv").read_text().startswith("data,labelled,wrong_sound,method,seed,auroc,average_precision")
    )


def test_a_setting_is_chosen_by_its_mean_over_the_seeds_and_the_published_one_if_equal():
    figures = {("kd", ""): (0.5, 0.3), ("kd", "weight=3.0"): (0.6, 0.1), ("ccl", "weight=0.1"): (0.2, 0.4)}
    figures |= {("ccl", "weight=0.3"): (0.4, 0.2)}
    rows = [
        {"method": method, "setting": setting, "seed": seed, "top1": top1}
        for (method, setting), both in figures.items()
        for seed, top1 in enumerate(both)
    ]
    assert study.best_settings(rows) == {"kd": "", "ccl": "weight=0.1"}
    with pytest.raises(ValueError, match="same seed"):
        study.best_settings([*rows, rows[0]])
