"""How well `avdistill audit` finds swapped sound: `results/audit.json`.

    python benchmarks/audit.py --grid DIR --study DIR --work DIR

- GRID (`--grid` is the `--work` of `grid.py`; its words, roles and teacher): 40% of the words of the 400 student clips
  get the sound of another word, half of the labels are taken away, and a student is trained with mnf_csc.
- Synthetic (`--study` is a study's folder in the `--work` of `methods.py`): its run of mnf_csc, seed 0, under
  `unrelated=0.4`.

Every score is measured against the truth, for labelled and unlabelled clips apart. Nothing was tuned on the truth: the
scores and the one that ranks were fixed before. Stopped, the same command goes on where it was.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import grid
from avdistill.data.conditions import apply_condition, parse_condition
from avdistill.data.files import write_json
from avdistill.data.store import Store
from avdistill.evaluation.classification import evaluate
from avdistill.methods import MNFCSCConfig
from avdistill.studies.audit import audit, write_audit
from avdistill.studies.audit_page import write_audit_page
from avdistill.teachers.carrying import carry_features
from avdistill.training.checkpoint import environment, run_config

RESULTS = Path(__file__).resolve().parents[1] / "results" / "audit.json"
CONDITION = "unrelated=0.4,labels=0.5"
STUDENT = replace(grid.STUDENT, method=MNFCSCConfig(), teacher="sound", steps=1000, labelled_per_batch=24)


def grid_run(words: Store, work: Path) -> Path:
    """A student trained on GRID's words, 40% of them with another word's sound."""
    swapped = apply_condition(words, parse_condition(CONDITION), work / "swapped")
    carry_features(words, swapped, "sound")
    return grid.run(replace(STUDENT, store=swapped.folder, out=work / "student"))


def audited(data: str, condition: str, run: Path, teacher: Path, out: Path) -> dict[str, Any]:
    """What the audit of a run on its own training clips finds; the page is written beside."""
    store = Store(run_config(run).store)
    result = audit(run, store)
    write_audit(out, result)
    write_audit_page(out / "audit.html", result, store)
    heard = evaluate(teacher, store).figures
    return {
        "data": data,
        "condition": condition,
        "seed": run_config(run).seed,
        "teacher_top1": heard["top1"],
        "student_top1": evaluate(run, store).figures["top1"],
        **result.figures,
    }


def main() -> None:
    """Both, one after the other."""
    parser = argparse.ArgumentParser(description="how well the audit finds swapped sound: results/audit.json")
    parser.add_argument("--grid", type=Path, required=True)
    parser.add_argument("--study", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    a = parser.parse_args()
    a.work.mkdir(parents=True, exist_ok=True)
    of_study = a.study / "runs" / "unrelated=0.4" / "mnf_csc" / "seed-0"
    run = grid_run(Store(a.grid / "store"), a.work)
    rows = [
        audited("GRID words", CONDITION, run, a.grid / "teacher", a.work / "audit-grid"),
        audited("synthetic", "unrelated=0.4", of_study, a.study.parent / "teacher", a.work / "audit-synthetic"),
    ]
    report = {
        "command": "python benchmarks/audit.py --grid DIR --study DIR --work DIR",
        "environment": {k: v for k, v in environment().items() if k != "command"},
        "students": rows,
    }
    write_json(RESULTS, report)


if __name__ == "__main__":
    main()
