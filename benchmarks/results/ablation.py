"""What each part of MNF + CSC contributes: `results/ablation.json`.

    python benchmarks/results/ablation.py --grid DIR --boxes DIR --work DIR [--workers 2]

The paper's setting, every training clip labeled: GRID's words, whose audio teacher knows more than the video, and
the actor boxes of UCF51, whose teacher knows less. `--grid` is the `--work` of `study_grid.py`, `--boxes` that of
`actor_boxes.py`. One part is changed at a time, nothing is tuned, and the curves are of a fifth of the training videos
set aside. Stopped, the same command goes on where it was.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import study
from avdistill.analysis.benchmark.study import Study, run_study, write_report
from avdistill.fsio import write_json
from methods import told_on_change

ROOT = Path(__file__).resolve().parents[2]
#: what stands in the table -> the method; the second is the released form, the others differ from it in one thing
VARIANTS = {
    "no distillation": "supervised",
    "released": "mnf_csc",
    "contrast left out": "mnf_csc:calibration_weight=0.0",
    "gate left open": "mnf_csc:gate=open",
    "mean instead of guided attention": "mnf_csc:attention=mean",
    "no triplet": "mnf_csc:triplet_weight=0.0",
    "no sparsity": "mnf_csc:sparsity_weight=0.0",
    "contrast does not train the filter": "mnf_csc:calibration_into_filter=false",
    "pairwise temperature, threshold 0.2": "mnf_csc:threshold=0.2",
    "sample temperature": "mnf_csc:temperature=sample",
    "fixed temperature 0.07": "mnf_csc:temperature=fixed",
    "fixed temperature 0.2": "mnf_csc:temperature=fixed,threshold=0.2",
}
SEEDS = (0, 1, 2)


def main() -> None:
    """Both data sets, one after the other."""
    parser = argparse.ArgumentParser(description="what each part of MNF + CSC contributes: results/ablation.json")
    parser.add_argument("--grid", type=Path, required=True)
    parser.add_argument("--boxes", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--workers", type=int, default=2)
    a = parser.parse_args()
    metadata: dict[str, Any] = {
        "command": "python benchmarks/results/ablation.py --grid DIR --boxes DIR --work DIR",
        "variants": {method: name for name, method in VARIANTS.items()},
    }
    for name, folder, base in (("grid", a.grid, study.GRID), ("ucf51_actor_boxes", a.boxes, study.BOXES)):
        parts = Study(
            dataset=folder / "dataset",
            out=a.work / name,
            base=replace(base, val_fraction=0.2, eval_every=base.steps // 10),
            methods=tuple(VARIANTS.values()),
            seeds=SEEDS,
        )
        rows = run_study(parts, workers=a.workers, on_progress=told_on_change())
        metadata[name] = write_report(parts, rows)
        write_json(ROOT / "results" / "ablation.json", metadata)


if __name__ == "__main__":
    main()
