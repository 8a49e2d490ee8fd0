"""The tables of the UCF51 study on runs that are counted by hand."""

from __future__ import annotations

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks" / "results"))

import ucf51
from resumable import append_row, read_rows
from ucf51 import Cell, cells, trials
from ucf51_metrics import ALL_LABELS, MISMATCHED, Metrics, rectangle

CLIPS = {1: ("v_Archery_g03_c01", "v_Archery_g03_c02", "v_Archery_g04_c01"), 2: ("v_Archery_g08_c01",)}


def write(folder, runs):
    """(method, split, seed, share of mismatched audio, right clips as 0 and 1) -> the study's two files."""
    table = folder / "ucf51.csv"
    for method, split, seed, mismatched, right in runs:
        about = {"labels": "all", "mismatched": mismatched, "student": ALL_LABELS[2], "method": method}
        about |= {"setting": method, "split": split, "seed": seed, "learning_rate": 0.001}
        mean = sum(map(int, right)) / len(right)
        names = ("top1_accuracy", "mean_class_accuracy", "expected_calibration_error", "hit@1", "map")
        append_row(table, about | dict.fromkeys(names, mean) | {"seconds": 9})
        each = dict(zip(CLIPS[split], map(int, right), strict=True))
        with (folder / "ucf51_clips.jsonl").open("a") as file:
            file.write(json.dumps(about | {"correct": each, "average_precision": each}) + "\n")
    return Metrics.read(table)


def test_differences_are_paired_by_split_seed_and_clip(tmp_path):
    metrics = write(
        tmp_path,
        [
            ("supervised", 1, 0, 0.0, "100"),
            ("supervised", 1, 1, 0.0, "110"),
            ("supervised", 2, 0, 0.0, "0"),
            ("kd", 1, 0, 0.0, "111"),
            ("kd", 2, 0, 0.0, "1"),
            ("kd", 2, 1, 0.0, "1"),
            ("kd", 1, 0, 0.4, "101"),
        ],
    )
    ahead = metrics.difference(ALL_LABELS, "kd", "supervised", "correct")
    assert ahead.mean == pytest.approx((2 + 1) / 4)  # seed 0 alone is in both splits of both
    assert metrics.difference(ALL_LABELS, "kd", "crd", "correct") is None
    # `supervised` never reads the audio: with mismatched audio its runs are the same.
    assert metrics.difference(MISMATCHED, "kd", "supervised", "correct").mean == pytest.approx(1 / 3)
    rows = {row["method"]: row for row in metrics.table(ALL_LABELS)}
    assert (rows["kd"]["n"], rows["supervised"]["n"]) == (2, 2)  # of seed 0, which both splits have
    assert rows["supervised"]["top1_accuracy"] == pytest.approx((1 / 3 + 0) / 2)
    assert rows["supervised"]["top1_accuracy_ahead"] is None
    assert rows["kd"]["top1_accuracy_ahead"].startswith("+0.750 (")
    ranks = {row["method"]: row for row in metrics.ranks([ALL_LABELS])}
    assert (ranks["kd"]["rank"], ranks["kd"]["contests"]) == (1, 4)


def test_criteria_are_met_by_gain_and_interval(tmp_path):
    runs = [("supervised", 1, 0, 0.0, "000"), ("mnf_csc", 1, 0, 0.0, "111"), ("robust_csc", 1, 0, 0.0, "001")]
    asked = {(row["condition"], row["asked"], row["metric"]): row for row in write(tmp_path, runs).asked()}
    every = "every clip labeled"
    assert asked[every, "`mnf_csc` ahead of `supervised` by 4 points", "top-1"]["met"] == "yes"
    assert asked[every, "`robust_csc` ahead of `supervised`", "top-1"]["met"] == "**no**"  # in one of two videos
    behind = asked[every, "`robust_csc` not behind `mnf_csc`", "mAP"]
    assert (behind["splits"], behind["found"]) == (1, "-0.667 (-1.000 to +0.000)")
    assert behind["met"] == "yes"  # its interval reaches zero
    few = asked["10 labels a class", "`robust_csc` not behind `robust`", "top-1"]
    assert (few["found"], few["met"]) == ("not run yet", "–")


def test_gains_stand_beside_those_without_any_own_audio(tmp_path):
    runs = [("supervised", 1, 0, 0.0, "000"), ("mnf_csc", 1, 0, 0.0, "111"), ("mnf_csc", 1, 0, 1.0, "001")]
    metrics = write(tmp_path, [*runs, ("kd", 1, 0, 0.0, "111"), ("supcon", 1, 0, 0.0, "110")])
    first, second = metrics.by_mismatch()
    assert (first["labels"], first["method"], first["metric"], second["metric"]) == ("all", "`mnf_csc`", "top-1", "mAP")
    assert (first["0%"][:6], first["40%"], first["100%"][:6]) == ("+1.000", None, "+0.333")
    assert (first["audio"][:6], first["supcon"][:6]) == ("+0.667", "+0.333")


def test_only_seeds_of_every_split_are_pooled():
    assert rectangle([(1, 0), (1, 1), (2, 0), (2, 1), (3, 1)]) == [(1, 1), (2, 1), (3, 1)]
    assert rectangle([(1, 0), (2, 1), (3, 0)]) == [(1, 0), (3, 0)]
    assert rectangle([]) == []


def test_what_chooses_settings_is_apart_from_what_is_tested():
    assert {cell.split for cell in trials()} == {0}
    assert {cell.split for cell in cells()} == {1, 2, 3}
    assert not {cell.seed for cell in trials()} & {cell.seed for cell in cells()}
    assert next(cells()) == Cell("all", 0.0, ALL_LABELS[2], "supervised", "supervised", 1, 0)


def test_a_run_that_fails_does_not_end_the_study(tmp_path, monkeypatch, capsys):
    first, second, third = [cell for cell in cells() if cell.method == "supervised"][:3]

    def run_cell(cell, work):
        if cell == second:
            raise OSError("no space left")
        return {"method": cell.method, "split": cell.split}, {"split": cell.split}

    monkeypatch.setattr(ucf51, "run_cell", run_cell)
    monkeypatch.setattr(ucf51, "ProcessPoolExecutor", lambda workers, *_, **__: ThreadPoolExecutor(workers))
    with pytest.raises(SystemExit, match=f"1 runs failed.*{second.name}"):
        ucf51.run_cells([first, second, third], tmp_path / "runs.csv", tmp_path, 1, committed=False)
    assert [row["split"] for row in read_rows(tmp_path / "runs.csv")] == [str(first.split), str(third.split)]
    assert "OSError: no space left" in capsys.readouterr().err
