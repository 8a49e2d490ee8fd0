"""Results of the runs of `study.py` and the criteria set before it: values for the tables of docs/results.md.

Differences are paired by seed and test clip; their 95% intervals come from a bootstrap over seeds and videos.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable
from typing import Any

import numpy as np

from avdistill.analysis.benchmark.report import read_lines
from avdistill.evaluation.statistics import Estimate, paired_difference
from study import DATA, RESULTS, TOLD, study_rows

Run = dict[str, Any]
#: a method counts as worse than no distillation where the interval is below zero and the mean below this
WORSE = -0.015


class Metrics:
    """The runs of a study, by what they were run under."""

    def __init__(self, runs: Iterable[Run], clips: dict[str, Any]) -> None:
        """runs: with `wrong_audio` of supervised at every share; clips: `test_clips.json`."""
        self.clips = clips
        self.cells: dict[tuple[str, int, float], dict[str, dict[int, Run]]] = {}
        for run in runs:
            cell = self.cells.setdefault((run["data"], run["labeled_clips"], run["wrong_audio"]), {})
            if "correct" in run:
                cell.setdefault(run["method"], {})[run["seed"]] = run

    def top1_accuracy(self, cell: tuple[str, int, float], method: str) -> float | None:
        """Mean over the seeds."""
        runs = self.cells.get(cell, {}).get(method)
        return statistics.mean(run["top1_accuracy"] for run in runs.values()) if runs else None

    def difference(self, cell: tuple[str, int, float], method: str, baseline: str) -> tuple[Estimate, int] | None:
        """How much better a method is than another over the seeds that both have, and how many those are."""
        both = [self.cells.get(cell, {}).get(name, {}) for name in (method, baseline)]
        seeds = sorted(set(both[0]) & set(both[1]))
        if not seeds:
            return None
        correct = [np.array([[c == "1" for c in runs[s]["correct"]] for s in seeds]) for runs in both]
        groups = np.unique(self.clips[cell[0]]["video"], return_inverse=True)[1]
        return paired_difference(correct[0], correct[1], groups), len(seeds)

    def accuracy(self, data: str) -> list[Run]:
        """A row for each corruption and method of a data set."""
        rows = []
        for cell, methods in self.cells.items():
            for method, runs in methods.items() if cell[0] == data else ():
                row: Run = {"labeled_clips": cell[1], "wrong_audio": cell[2], "method": method, "seeds": len(runs)}
                for name in ("top1_accuracy", "mean_class_accuracy", "map"):
                    row[name] = statistics.mean(run[name] for run in runs.values())
                row["top1_accuracy_std"] = (
                    statistics.stdev(r["top1_accuracy"] for r in runs.values()) if len(runs) > 1 else None
                )
                if method != "supervised" and (found := self.difference(cell, method, "supervised")):
                    row |= {"difference": found[0].mean, "interval": _told(found[0])}
                rows.append(row | self._apart(cell, runs))
        return rows

    def _apart(self, cell: tuple[str, int, float], runs: dict[int, Run]) -> Run:
        """Accuracy on test clips of classes with and without a labeled training clip, where there are both."""
        known = set(self.clips[cell[0]]["labeled_classes"][str(cell[1])])
        has = np.array([label in known for label in self.clips[cell[0]]["label"]])
        if has.all():
            return {}
        correct = np.array([[c == "1" for c in run["correct"]] for run in runs.values()])
        return {"top1_labeled_classes": correct[:, has].mean(), "top1_other_classes": correct[:, ~has].mean()}

    def gap_closed(self, data: str, few: int, every: int) -> list[Run]:
        """Of the gap between supervised with few and with every label, what each method closes under clean audio."""
        low, high = (
            self.top1_accuracy((data, few, 0.0), "supervised"),
            self.top1_accuracy((data, every, 0.0), "supervised"),
        )
        if low is None or high is None:
            return []
        rows = []
        for method in self.cells[data, few, 0.0]:
            reached = self.top1_accuracy((data, few, 0.0), method)
            if reached is not None and method != "supervised":
                closed = (reached - low) / (high - low)
                rows.append(
                    {"labeled_clips": few, "method": method, "few": low, "top1_accuracy": reached, "every": high}
                    | {"closed": closed}
                )
        return rows

    def gain_kept(self, data: str, labeled: int, wrong: float) -> list[Run]:
        """Of each method's gain over supervised under clean audio, what is left with wrong audio."""
        clean, mismatched = (data, labeled, 0.0), (data, labeled, wrong)
        base, rows = self.top1_accuracy(clean, "supervised"), []
        for method in self.cells.get(mismatched, {}):
            before, after = (
                self.top1_accuracy(clean, "robust" if method == TOLD else method),
                self.top1_accuracy(mismatched, method),
            )
            if None in (base, before, after) or method.startswith("supervised"):
                continue
            gains = before - base, after - base  # type: ignore[operator]
            row = {
                "labeled_clips": labeled,
                "wrong_audio": wrong,
                "method": method,
                "clean": gains[0],
                "wrong": gains[1],
            }
            rows.append(row | {"kept": gains[1] / gains[0] if gains[0] > 0 else None})
        return rows

    def against(self, method: str, baselines: Iterable[str]) -> list[Run]:
        """A method against others under every corruption."""
        rows = []
        for cell in self.cells:
            for baseline in baselines:
                found = self.difference(cell, method, baseline)
                if found is not None:
                    d, seeds = found
                    row: Run = {"data": cell[0], "labeled_clips": cell[1], "wrong_audio": cell[2], "against": baseline}
                    worse = d.high < 0 and d.mean < WORSE
                    verdict = "ahead" if d.low > 0 else "worse" if worse else "level"
                    rows.append(row | {"difference": d.mean, "interval": _told(d), "seeds": seeds, "verdict": verdict})
        return rows

    def means(self, columns: dict[str, tuple[str, int, float]]) -> list[Run]:
        """A row per method, its top-1 in each of the cells: heading -> (data, labeled clips, wrong audio)."""
        methods = dict.fromkeys(method for cell in columns.values() for method in self.cells.get(cell, {}))
        return [{"method": m} | {name: self.top1_accuracy(cell, m) for name, cell in columns.items()} for m in methods]

    def asked(self) -> list[Run]:
        """The criteria set before the study was run, the results, and whether each criterion is met."""
        rows: list[Run] = []

        def add(asked: str, videos: int | None, found: str, met: bool) -> None:
            rows.append({"asked": asked, "labeled_videos": videos, "found": found, "met": "yes" if met else "**no**"})

        audits = {(r["data"], r["labeled_clips"], r["method"], r["clips"]): r["auroc"] for r in self.found()}
        against = self.against("robust", ("supervised", "pseudo_label", "kd"))
        for few in (20, 70):
            best = max(self.gap_closed("grid", few, 400), key=lambda row: row["closed"])
            add(
                "the best method closes half of the gap",
                few,
                f"{best['method']} {best['closed']:.2f}",
                best["closed"] >= 0.5,
            )
            (kept,) = (r["kept"] for r in self.gain_kept("grid", few, 0.4) if r["method"] == "robust")
            add("`robust` keeps 0.8 of its gain with 40% mismatched audio", few, f"{kept:.2f}", kept >= 0.8)
            for row in against:
                if (row["data"], row["labeled_clips"], row["wrong_audio"]) != ("grid", few, 0.4):
                    continue
                if row["against"] != "supervised":
                    found = f"{row['difference']:+.3f} ({row['interval']})"
                    add(
                        f"`robust` is ahead of `{row['against']}` with 40% mismatched audio",
                        few,
                        found,
                        row["verdict"] == "ahead",
                    )
            auroc = audits["grid", few, "robust", "unlabeled"]
            add(
                "its mismatch probabilities find unlabeled mismatched clips with AUROC 0.90",
                few,
                f"{auroc:.3f}",
                auroc >= 0.9,
            )
        # Where every clip is labeled it is the same run as no distillation.
        other = [r for r in against if r["against"] == "supervised" and r["labeled_clips"] != DATA[r["data"]].every]
        last = min(other, key=lambda row: row["difference"])
        where = f"{last['data']}, {last['wrong_audio']:.0%} mismatched: {last['difference']:+.3f} ({last['interval']})"
        met = all(row["verdict"] != "worse" for row in other)
        add("`robust` is nowhere worse than no distillation", None, f"least gain: {where}", met)
        return rows

    def found(self) -> list[Run]:
        """How well runs find mismatched audio: mean over the seeds, for labeled and unlabeled clips apart."""
        rows = []
        for cell, methods in self.cells.items():
            for method, runs in methods.items():
                for group in ("labeled", "unlabeled"):
                    lines = [
                        line
                        for run in runs.values()
                        for line in run.get("audit", ())
                        if line["group"] == group and line["score"] == "mismatch_score" and line["auroc"] is not None
                    ]
                    if lines:
                        row: Run = {"data": cell[0], "labeled_clips": cell[1], "wrong_audio": cell[2], "method": method}
                        row |= {"clips": group, "seeds": len(lines)}
                        for name in ("auroc", "average_precision"):
                            row[name] = statistics.mean(line[name] for line in lines)
                        rows.append(row)
        return rows


def _told(d: Estimate) -> str:
    return f"{d.low:+.3f} to {d.high:+.3f}"


def study_runs() -> Metrics:
    """Every run of the study on GRID, boxes and synthetic videos."""
    runs = study_rows(read_lines(RESULTS / "runs.jsonl", "method"))
    return Metrics(runs, json.loads((RESULTS / "test_clips.json").read_text(encoding="utf-8")))
