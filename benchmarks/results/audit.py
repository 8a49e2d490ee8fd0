"""How well `avdistill audit` finds swapped audio: `results/audit.json`.

    python benchmarks/results/audit.py --grid DIR --study DIR --work DIR

- GRID (`--grid` is the `--work` of `grid.py`; its words, roles and teacher): 40% of the words of the 400 student clips
  get the audio of another word, half of the labels are taken away, and a student is trained with mnf_csc.
- Synthetic (`--study` is a study's folder in the `--work` of `methods.py`): its run of mnf_csc, seed 0, under
  `mismatched=0.4`.

Every score is measured against the truth, for labeled and unlabeled clips apart. Nothing was tuned on the truth: the
scores and the one that ranks were fixed before. Stopped, the same command goes on where it was.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import grid
from avdistill.analysis.audit.audit import audit, write_audit
from avdistill.analysis.audit.page import write_audit_page
from avdistill.corruption import corrupt, parse_corruption
from avdistill.dataset.clip_dataset import ClipDataset
from avdistill.evaluation.classification import evaluate
from avdistill.fsio import write_json
from avdistill.methods.mnf_csc import MNFCSCConfig
from avdistill.teachers.transfer import transfer_features
from avdistill.training.run_dir import machine, run_config

RESULTS = Path(__file__).resolve().parents[2] / "results" / "audit.json"
CORRUPTION = "mismatched=0.4,label_fraction=0.5"
STUDENT = replace(grid.STUDENT, method=MNFCSCConfig(), teacher="audio", steps=1000, labeled_per_batch=24)


def grid_run(words: ClipDataset, work: Path) -> Path:
    """A student trained on GRID's words, 40% of them with another word's audio."""
    swapped = corrupt(words, parse_corruption(CORRUPTION), work / "swapped")
    transfer_features(words, swapped, "audio")
    return grid.run(replace(STUDENT, dataset=swapped.folder, out=work / "student"))


def audited(data: str, corruption: str, run: Path, teacher: Path, out: Path) -> dict[str, Any]:
    """What the audit of a run on its own training clips finds; the page is written beside."""
    dataset = ClipDataset(run_config(run).dataset)
    result = audit(run, dataset)
    write_audit(out, result)
    write_audit_page(out / "audit.html", result, dataset)
    heard = evaluate(teacher, dataset).metrics.to_dict()
    return {
        "data": data,
        "corruption": corruption,
        "seed": run_config(run).seed,
        "teacher_top1": heard["top1_accuracy"],
        "student_top1": evaluate(run, dataset).metrics.to_dict()["top1_accuracy"],
        **result.metrics,
    }


def main() -> None:
    """Both, one after the other."""
    parser = argparse.ArgumentParser(description="how well the audit finds swapped audio: results/audit.json")
    parser.add_argument("--grid", type=Path, required=True)
    parser.add_argument("--study", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    a = parser.parse_args()
    a.work.mkdir(parents=True, exist_ok=True)
    of_study = a.study / "runs" / "mismatched=0.4" / "mnf_csc" / "seed-0"
    run = grid_run(ClipDataset(a.grid / "dataset"), a.work)
    rows = [
        audited("GRID words", CORRUPTION, run, a.grid / "teacher", a.work / "audit-grid"),
        audited("synthetic", "mismatched=0.4", of_study, a.study.parent / "teacher", a.work / "audit-synthetic"),
    ]
    report = {
        "command": "python benchmarks/results/audit.py --grid DIR --study DIR --work DIR",
        "environment": machine(),
        "students": rows,
    }
    write_json(RESULTS, report)


if __name__ == "__main__":
    main()
