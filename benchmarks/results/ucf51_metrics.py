"""The tables of the UCF51 study, from `results/ucf51.csv` and `results/ucf51_clips.jsonl`.

A cell of a table holds the runs of one method over splits and seeds. An interval is a bootstrap over seeds and source
videos (a group of UCF101 is clips of one video, and each is tested in one split); a difference is paired: same splits,
seeds and clips.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from avdistill.annotations.groups import video_of
from avdistill.evaluation.statistics import Estimate, interval, mean_ranks, paired_difference
from resumable import read_rows

Condition = tuple[str, float, str]
#: labels a class, share of mismatched audio, student
ALL_LABELS: Condition = ("all", 0.0, "shifted_frames_8x256")
FEW_LABELS: Condition = ("10", 0.0, "shifted_frames_8x256")
MISMATCHED: Condition = ("all", 0.4, "shifted_frames_8x256")
FEW_AND_MISMATCHED: Condition = ("10", 0.4, "shifted_frames_8x256")
#: controls: no clip has its own audio
CONTROL_ALL: Condition = ("all", 1.0, "shifted_frames_8x256")
CONTROL_FEW: Condition = ("10", 1.0, "shifted_frames_8x256")
#: a student from ImageNet's weights
PRETRAINED_ALL: Condition = ("all", 0.0, "efficientnet_lite0_96")
PRETRAINED_FEW: Condition = ("10", 0.0, "efficientnet_lite0_96")
#: the same on smaller frames, nothing frozen: given up for the one above
SMALL_FRAMES_ALL: Condition = ("all", 0.0, "efficientnet_lite0")
SMALL_FRAMES_FEW: Condition = ("10", 0.0, "efficientnet_lite0")
CONDITIONS = (ALL_LABELS, FEW_LABELS, MISMATCHED, FEW_AND_MISMATCHED)
NAMES = {
    ALL_LABELS: "every clip labeled",
    FEW_LABELS: "10 labels a class",
    MISMATCHED: "every clip labeled, 40% mismatched audio",
    FEW_AND_MISMATCHED: "10 labels a class, 40% mismatched audio",
    PRETRAINED_ALL: "every clip labeled, student from ImageNet's weights",
    PRETRAINED_FEW: "10 labels a class, student from ImageNet's weights",
}
#: Set before the study was run: (condition, method, baseline, least gain of top-1 and of mAP). The interval of a gain
#: must be above zero too; without a least gain it must not lie below zero.
ASKED: tuple[tuple[Condition, str, str, tuple[float, float] | None], ...] = (
    (ALL_LABELS, "mnf_csc", "supervised", (0.04, 0.10)),
    *((condition, "robust_csc", "supervised", (0.0, 0.0)) for condition in NAMES),
    (ALL_LABELS, "robust_csc", "mnf_csc", None),
    (FEW_LABELS, "robust_csc", "robust", None),
    (MISMATCHED, "robust_csc", "mnf_csc", None),
    (FEW_AND_MISMATCHED, "robust_csc", "robust", None),
    (FEW_AND_MISMATCHED, "robust_csc", "mnf_csc, labeled", None),
)
KEY = ("labels", "mismatched", "student", "method", "setting", "split", "seed", "learning_rate")
#: what a run says of each test clip -> what its mean is
PER_CLIP = {"correct": "top1_accuracy", "average_precision": "map"}
Runs = dict[tuple[int, int], dict[str, Any]]  # (split, seed) -> row


@dataclass(frozen=True)
class Metrics:
    """All finished runs: `rows` of the table, each with `correct` and `average_precision` of its test clips."""

    rows: list[dict[str, Any]]

    @classmethod
    def read(cls, table: Path) -> Metrics:
        """The runs of a table, and of the list of clips beside it."""
        rows = [_typed(row) for row in read_rows(table)]
        lines = table.with_name(f"{table.stem}_clips.jsonl").read_text(encoding="utf-8").splitlines()
        clips = {tuple(line[name] for name in KEY): line for line in map(json.loads, lines)}
        return cls([row | {name: clips[tuple(row[key] for key in KEY)][name] for name in PER_CLIP} for row in rows])

    def runs(self, condition: Condition, method: str) -> Runs:
        """The runs of a method under a condition."""
        labels, mismatched, student = condition
        if method == "supervised":  # it never reads the audio
            mismatched = 0.0
        return {
            (row["split"], row["seed"]): row
            for row in self.rows
            if (row["labels"], row["mismatched"], row["student"], row["method"])
            == (labels, mismatched, student, method)
        }

    def methods(self, condition: Condition) -> list[str]:
        """Methods with a run under the condition, in the order of the table."""
        methods = dict.fromkeys(row["method"] for row in self.rows)
        return [method for method in methods if self.runs(condition, method)]

    def difference(
        self, condition: Condition, method: str, baseline: str, of: str, *, under: Condition | None = None
    ) -> Estimate | None:
        """How far a method is ahead of another, on the splits and seeds that both have; None where there are none.

        Args:
            condition, method, baseline: as above.
            of: a key of `PER_CLIP`.
            under: the condition of the baseline; None is the same.
        """
        first, second = self.runs(condition, method), self.runs(under or condition, baseline)
        pairs = rectangle(first.keys() & second.keys())
        if not pairs:
            return None
        groups, values = per_clip(first, pairs, of)
        return paired_difference(values, per_clip(second, pairs, of)[1], groups)

    def table(self, condition: Condition) -> list[dict[str, Any]]:
        """A row per method: means over its runs and the paired differences to `supervised`.

        Of the seeds that all its splits have: splits are not equally hard.
        """
        lines = []
        for method in self.methods(condition):
            runs = self.runs(condition, method)
            runs = {pair: runs[pair] for pair in rectangle(runs)}
            means = {
                name: float(np.mean([row[name] for row in runs.values()]))
                for name in ("top1_accuracy", "mean_class_accuracy", "expected_calibration_error", "hit@1", "map")
            }
            line: dict[str, Any] = {"method": method, "n": len(runs)} | means
            for of, name in PER_CLIP.items():
                ahead = None if method == "supervised" else self.difference(condition, method, "supervised", of)
                line[f"{name}_ahead"] = ahead and signed(ahead)
            lines.append(line)
        return sorted(lines, key=lambda line: (line["method"] != "supervised", -line["top1_accuracy"]))

    def panels(self, condition: Condition) -> dict[str, dict[str, tuple[float, float, float]]]:
        """Metric -> method -> its mean and interval, for `plot_estimates`; methods as in `table`."""
        shown: dict[str, dict[str, tuple[float, float, float]]] = {}
        for of, name in {"correct": "top-1 accuracy", "average_precision": "mAP of retrieval"}.items():
            for line in self.table(condition):
                runs = self.runs(condition, line["method"])
                groups, values = per_clip(runs, rectangle(runs), of)
                found = interval(values, groups)
                shown.setdefault(name, {})[line["method"]] = (found.mean, found.low, found.high)
        return shown

    def by_mismatch(self) -> list[dict[str, Any]]:
        """Gains over `supervised` by the share of mismatched audio, of methods with a run where none matches.

        `audio` is how far the run with each clip's own audio is ahead of the one where none matches, `supcon` of the
        contrast of labels alone.
        """
        rows: list[dict[str, Any]] = []
        for control in (CONTROL_ALL, CONTROL_FEW):
            for method in self.methods(control):
                if method == "supervised":
                    continue
                for of, name in {"correct": "top-1", "average_precision": "mAP"}.items():
                    row: dict[str, Any] = {"labels": control[0], "method": f"`{method}`", "metric": name}
                    for share in (0.0, 0.4, 1.0):
                        gain = self.difference((control[0], share, control[2]), method, "supervised", of)
                        row[f"{100 * share:g}%"] = gain and signed(gain)
                    own = (control[0], 0.0, control[2])
                    audio = self.difference(own, method, method, of, under=control)
                    alone = self.difference(own, method, "supcon", of)
                    rows.append(row | {"audio": audio and signed(audio), "supcon": alone and signed(alone)})
        return rows

    def asked(self) -> list[dict[str, Any]]:
        """Each criterion of `ASKED` in both metrics, what the runs say, and whether it is met."""
        rows: list[dict[str, Any]] = []
        for condition, method, baseline, least in ASKED:
            for i, (of, name) in enumerate({"correct": "top-1", "average_precision": "mAP"}.items()):
                gain = self.difference(condition, method, baseline, of)
                wanted = f"ahead of `{baseline}`" if least else f"not behind `{baseline}`"
                by = f" by {100 * least[i]:g} points" if least and least[i] else ""
                row: dict[str, Any] = {
                    "condition": NAMES[condition],
                    "asked": f"`{method}` {wanted}{by}",
                    "metric": name,
                }
                if gain is None:
                    rows.append(row | {"found": "not run yet", "met": "–"})
                    continue
                met = gain.high >= 0 if least is None else gain.low > 0 and gain.mean >= least[i]
                splits = len({split for split, _ in self.runs(condition, method)})
                rows.append(row | {"splits": splits, "found": signed(gain), "met": "yes" if met else "**no**"})
        return rows

    def ranks(self, conditions: Sequence[Condition]) -> list[dict[str, Any]]:
        """Mean rank of each method that all the conditions have, over conditions, splits, top-1 and mAP; 1 is best."""
        common = set.intersection(*(set(self.methods(condition)) for condition in conditions))
        scores: dict[str, list[float]] = {method: [] for method in sorted(common)}
        for condition in conditions:
            found = {method: self.runs(condition, method) for method in scores}
            shared = set.intersection(*(set(runs) for runs in found.values())) if found else set()
            for key in sorted(shared):
                for method, runs in found.items():
                    scores[method] += [runs[key][name] for name in PER_CLIP.values()]
        if not scores or not all(scores.values()):
            return []
        ranked = sorted(mean_ranks(scores).items(), key=lambda item: item[1])
        return [{"method": method, "rank": rank, "contests": len(scores[method])} for method, rank in ranked]


def per_clip(runs: Runs, pairs: list[tuple[int, int]], of: str) -> tuple[np.ndarray, np.ndarray]:
    """(N,) source videos and (S, N) values of the test clips of all splits, with the seeds that every split has."""
    splits, seeds = sorted({split for split, _ in pairs}), sorted({seed for _, seed in pairs})
    ids = {split: sorted(runs[split, seeds[0]][of]) for split in splits}
    values = [[runs[split, seed][of][clip] for split in splits for clip in ids[split]] for seed in seeds]
    return np.array([video_of(clip) for split in splits for clip in ids[split]]), np.array(values, dtype=float)


def rectangle(pairs: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Of (split, seed) pairs those of the seeds that all splits have, or, where there is no such seed, of seed 0."""
    found = set(pairs)
    splits = {split for split, _ in found}
    seeds = {seed for _, seed in found if all((split, seed) in found for split in splits)} or {0}
    return sorted((split, seed) for split, seed in found if seed in seeds)


def signed(ahead: Estimate) -> str:
    """A difference with its interval, as a table shows it."""
    return f"{ahead.mean:+.3f} ({ahead.low:+.3f} to {ahead.high:+.3f})"


def _typed(row: dict[str, str]) -> dict[str, Any]:
    texts = ("labels", "student", "method", "setting")
    kinds = {"split": int, "seed": int, "seconds": int}
    return {name: value if name in texts else kinds.get(name, float)(value) for name, value in row.items()}
