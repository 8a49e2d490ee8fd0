"""What decisions of an audit without training are worth: `results/decisions.json`.

    python benchmarks/results/decisions.py --demo DIR --work DIR

`--demo` is the folder of `avdistill demo`, whose students are trained without decisions. Its training clips are audited
from frozen YAMNet and EfficientNet-Lite0 features (five frames of 160 x 160 a clip), no label seen; the audio of clips
that score at least the threshold is dropped, and the same students are trained again (same seeds, steps and test
clips). The threshold is 0.5, the score of unrelated audio; no other was tried.
"""

from __future__ import annotations

import argparse
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from avdistill.analysis.audit.audit import decide
from avdistill.analysis.audit.dataset_audit import audit_dataset
from avdistill.analysis.benchmark.report import correct_matrix
from avdistill.analysis.benchmark.study import Study, run_study
from avdistill.analysis.demo import METHODS
from avdistill.dataset.clip_dataset import ClipDataset
from avdistill.dataset.decisions import DROP_AUDIO, write_decisions
from avdistill.dataset.splits import labeled_clips
from avdistill.evaluation.statistics import paired_difference
from avdistill.fsio import write_json
from avdistill.inputs import VideoInput
from avdistill.teachers.extraction import embed
from avdistill.teachers.registry import load_teacher
from avdistill.training.recipes import RECIPES
from avdistill.training.run_dir import machine

RESULTS = Path(__file__).resolve().parents[2] / "results"
FRAME = VideoInput(frames=1, size=(160, 160))
THRESHOLD, SEEDS, WINDOWS = 0.5, (0, 1, 2), 5


def main() -> None:
    """Audit, decide, train, compare."""
    parser = argparse.ArgumentParser(description="results/decisions.json")
    parser.add_argument("--demo", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--workers", type=int, default=2)
    a = parser.parse_args()
    os.setpriority(os.PRIO_PROCESS, 0, 10)
    folder = a.work / "dataset"
    if not folder.is_dir():
        shutil.copytree(a.demo / "dataset", folder)
    encoders = {"yamnet": load_teacher("yamnet"), "lite0": replace(load_teacher("efficientnet_lite0"), view=FRAME)}
    for name, encoder in encoders.items():
        if name not in ClipDataset(folder).teachers:
            embed(ClipDataset(folder), encoder, name, windows=WINDOWS)
    dataset = ClipDataset(folder)
    audit = audit_dataset(dataset, audio_features="yamnet", video_features="lite0", split="train")
    decisions = decide(audit, THRESHOLD)
    write_decisions(a.work / "decisions.csv", decisions)
    distilled = {name: text for name, text in METHODS.items() if name != "supervised"}
    base = RECIPES["demo_supervised"]
    decided = replace(base, decisions=(a.work / "decisions.csv").resolve())
    studies = {
        # As the demo made it: its runs are there and are only read.
        "without": Study(a.demo / "dataset", a.demo / "study", base=base, methods=tuple(METHODS.values()), seeds=SEEDS),
        "with": Study(folder, a.work / "study", base=decided, methods=tuple(distilled.values()), seeds=SEEDS),
    }
    rows = {which: run_study(study, workers=a.workers, threads=1) for which, study in studies.items()}
    groups = dataset.columns["group"][labeled_clips(dataset, "test")]
    truth = {row["id"]: row["audio"] == "mismatched" for row in audit.rows}
    dropped = [truth[each.clip] for each in decisions if each.kind == DROP_AUDIO]
    report: dict[str, Any] = {
        "command": "python benchmarks/results/decisions.py --demo DIR --work DIR",
        "environment": machine(),
        "threshold": THRESHOLD,
        "auroc": audit.metrics["truth"]["auroc"],
        "audited": len(decisions),
        "mismatched": sum(truth[each.clip] for each in decisions),
        "dropped": len(dropped),
        "dropped_mismatched": sum(dropped),
        "students": [
            {"method": name, "seed": row["seed"], "decisions": which, "top1_accuracy": row["top1_accuracy"]}
            for which, of_study in rows.items()
            for name, text in distilled.items()
            for row in of_study
            if row["method"] == text
        ],
        "methods": [],
    }
    for name, text in distilled.items():
        first, second = (
            correct_matrix([row for row in rows[which] if row["method"] == text]) for which in ("with", "without")
        )
        ahead = paired_difference(first, second, groups)
        row = {"method": name, "top1_without": float(second.mean()), "top1_with": float(first.mean())}
        row |= {"difference": ahead.mean, "low": ahead.low, "high": ahead.high}
        report["methods"].append(row)
        print(row, flush=True)
    write_json(RESULTS / "decisions.json", report)


if __name__ == "__main__":
    main()
